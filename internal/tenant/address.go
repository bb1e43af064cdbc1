package tenant

import (
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/seal"
)

// TLSMode says how the connection to a user's database is protected.
type TLSMode string

// The modes. There is none that encrypts without checking the certificate.
const (
	TLSVerifyFull TLSMode = "verify-full" // the certificate is checked, and that it names the host
	TLSDisable    TLSMode = "disable"     // plain text, to networks that the operator allows only
)

// Address is where a user's own PostgreSQL is reached, without the password.
type Address struct {
	Host     string // a name in lower case, or an IP address without brackets
	Port     uint16
	Database string
	Username string
	TLS      TLSMode
}

// ParseAddress reads a postgres:// address as users write it.
func ParseAddress(url seal.Secret) (Address, seal.Secret, error) {
	return Address{}, "", fault.BadInput("tenant.ParseAddress", "body.url", "not built yet")
}

// Check notes what is wrong with the address, each problem at body.host, body.port and so on.
func (a Address) Check(c *fault.Checks) {}

// CheckPassword notes what is wrong with the password, which may be empty.
func CheckPassword(c *fault.Checks, password seal.Secret) {}
