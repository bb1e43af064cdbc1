package account

import "claude-memory-backend/internal/ident"

// Sign makes an access token as the service does.
func Sign(s *Service, a ident.AccountID, session ident.SessionID) (AccessToken, error) {
	return s.signer.sign(a, session, s.c.FullLife)
}

// Seen is how many sessions the service remembers to have seen.
func Seen(s *Service) int {
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	return len(s.seen.live)
}
