// Package seal owns keys and what is done with them: masking secrets in everything that prints, deriving one key per
// purpose from the operator's master key, sealing small values, and wrapping the keys of tenants' files.
//
// It never stores anything, never reads the environment and never decides who may open what. Its neighbours hand it a
// [Secret] from the configuration and keep the sealed bytes it returns. It imports fault and nothing else of ours.
//
// A sealed value is: version (1 byte), key id (8 bytes), nonce (24 bytes), XChaCha20-Poly1305 ciphertext. The id names
// the master key, so after a rotation [Keyring.Open] finds the right one among the previous keys and
// [Keyring.Rewrap] moves the value under the current one:
//
//	sealed by A --(keyring B, previous A)--> readable, Rewrap --> sealed by B --(keyring B alone)--> readable
package seal
