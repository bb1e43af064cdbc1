package tenant

// Address is where a PostgreSQL of a user's own listens, without its password.
type Address struct {
	Host     string
	Port     uint16
	Database string
	Username string
	TLS      TLSMode
}

// TLSMode is how a connection is protected.
type TLSMode string
