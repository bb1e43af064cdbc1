// Command webhooks measures what telling others of events costs, and how long it takes: the real server, its endpoints in
// the driver's process, 10,000 deliveries over 100 endpoints (100 tenants with one each) and over 50 (one tenant with
// all), beside the same changes without endpoints.
// With a second part, what eight endpoints that behave badly cost a healthy one of the same account.
//
// Time to delivery is counted from the event's own time, which the server took when it made the change, until the endpoint
// has the whole request. It proves nothing about what is lost: cmd/memoryd's hookkill_test.go does.
package main
