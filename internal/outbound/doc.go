// Package outbound owns the one dialer for addresses that users give: it resolves a name, decides about what it
// resolved to, and connects to exactly the address it decided about.
//
// A name may point anywhere and change its mind between two look-ups, so nothing that was checked by name is ever
// dialled by name. What is not plainly a public address is refused unless the operator allows its network; forms that
// carry another address inside (mapped, translated, tunnelled) are refused altogether. Proxies named in the
// environment are not used.
//
// It never says what a name resolved to: that would make a map of the operator's network.
package outbound
