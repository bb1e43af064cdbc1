package webhook

import "strings"

// Known reports whether a filter can match anything.
func Known(pattern string) bool {
	noun, rest, ok := strings.Cut(pattern, ".")
	return pattern == "*" || ok && rest != "" && noun != ""
}
