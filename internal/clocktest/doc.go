// Package clocktest is the time of tests: it stands until somebody moves it. It is for tests only.
package clocktest
