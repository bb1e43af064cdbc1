package live

// Endings are the names of all endings but that of a client that leaves.
func Endings() (names []string) {
	for _, e := range []ending{badFrame, tooLarge, notText, tooMany, crowded, unsigned, signedOut, expired, otherAccount, stopping, unresponsive, slow, broken} {
		names = append(names, e.name)
	}
	return names
}
