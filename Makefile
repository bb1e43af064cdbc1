# Everything a developer does with this repository. `make` alone lists it.

SHELL := /bin/bash
.DEFAULT_GOAL := help

BIN   := bin/memoryd
TOOLS := .cache/tools

GOLANGCI_VERSION    := v2.15.0
GOVULNCHECK_VERSION := v1.9.0
GOLANGCI    := $(TOOLS)/golangci-lint-$(GOLANGCI_VERSION)/golangci-lint
GOVULNCHECK := $(TOOLS)/govulncheck-$(GOVULNCHECK_VERSION)/govulncheck
PG          := $(TOOLS)/with-postgres

# Races are looked for in everything but SQLite itself, whose one huge generated package would make its tests fourteen
# times slower instead of twice and hides no goroutines. `make test RACE=` does without.
RACE ?= -race -gcflags=github.com/ncruces/go-sqlite3-wasm/...=-race=false

##@ Run

.PHONY: run
run: ## start the server in development; needs no key, no database, no configuration
	go run ./cmd/memoryd serve

.PHONY: watch
watch: ## the same, rebuilt and restarted whenever a file changes
	scripts/watch

.PHONY: build
build: ## one static binary, bin/memoryd; Go stamps it with the commit
	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o $(BIN) ./cmd/memoryd

.PHONY: migrate
migrate: ## bring the databases of the current configuration up to date
	go run ./cmd/memoryd migrate

##@ Prove

.PHONY: setup
setup: ## install what tests need and this machine lacks (Debian; root or sudo)
	@scripts/setup

# What takes longest begins first, so that no package runs alone at the end.
LONG := ./internal/sqlstore ./cmd/memoryd ./internal/relocate ./internal/httpapi

# What judges times has the machine to itself: beside other tests it would judge those.
ALONE := ^TestCrash$$

# GOGC stays as it is: 400 took 4 to 24 % more processor time, since new memory costs more than collecting the old, with the
# race detector's own memory beside it (httpapi, user and system time, interleaved).

# What a test marks as parallel waits for servers more than it works: four at once keep two cores busy.
PARALLEL ?= 4

.PHONY: test
test: setup $(PG) ## everything that CI proves: vet, then all tests on both engines, watched for races
	go vet ./...
	$(PG) go test $(RACE) -vet=off -timeout 30m -run '$(ALONE)' ./cmd/memoryd
	$(PG) go test $(RACE) -vet=off -parallel $(PARALLEL) -timeout 30m -skip '$(ALONE)' $(LONG) ./...

.PHONY: test-short
test-short: $(PG) ## the same, quick: no vet, no race detector, nothing that takes long (go test -short)
	$(PG) go test -short -vet=off ./...

.PHONY: test-n8n
test-n8n: ## the n8n workflows on a real n8n (installs it: 2.5 GB, some minutes)
	scripts/n8n-setup
	go test -tags n8n -count=1 -v -timeout 20m ./internal/claude/n8nsuite/...

ROUNDS ?= 50
.PHONY: crash
crash: $(PG) ## kill -9 the server under load, ROUNDS=50 times, and count what was lost
	$(PG) env CRASH_ROUNDS=$(ROUNDS) go test -count=1 -v -timeout 2h -run Crash ./...

.PHONY: hooks
hooks: $(PG) ## kill -9 the server while it tells webhooks of events, ROUNDS=50 times on each engine; none may be lost or made up
	$(PG) env HOOK_ROUNDS=$(ROUNDS) go test -count=1 -v -timeout 2h -run WebhookKills ./cmd/memoryd

.PHONY: cover
cover: $(PG) ## all tests with coverage over all packages; report in coverage.html
	$(PG) go test -vet=off -coverpkg=./... -coverprofile=coverage.out ./...
	go tool cover -html=coverage.out -o coverage.html
	go tool cover -func=coverage.out | tail -n 1

.PHONY: bench
bench: ## measure the real server beside a bare echo and relay, on both engines (see bench/README.md)
	go run ./bench

.PHONY: bench-tenants
bench-tenants: ## 20,000 tenants against 10, and what a busy one costs its neighbours; half an hour. DIR=folder keeps them
	go run ./bench/tenants $(if $(DIR),-dir $(DIR))

.PHONY: bench-live
bench-live: ## WebSockets: readers that stall, deliveries and memory beside a bare hub, 10,000 idle; some eight minutes. ARGS="-only idle"
	go run ./bench/live $(ARGS)

.PHONY: bench-webhooks
bench-webhooks: ## 10,000 deliveries over 100 endpoints, on SQLite files; a minute. ARGS="-postgres URL" for another engine
	go run ./bench/webhooks $(ARGS)

.PHONY: bench-migrate
bench-migrate: ## 2,000 tenants to the next version of the schema and back; some minutes. TENANTS=200 to see that it works
	go run ./bench/migrate $(if $(TENANTS),-tenants $(TENANTS))

.PHONY: bench-go
bench-go: $(PG) ## Go benchmarks of the packages
	$(PG) go test -vet=off -run '^$$' -bench . -benchmem ./...

##@ Keep

.PHONY: fmt
fmt: ## gofmt
	gofmt -w cmd internal bench

.PHONY: lint
lint: $(GOLANGCI) ## golangci-lint with .golangci.yml
	$(GOLANGCI) run ./...

.PHONY: lint-fix
lint-fix: $(GOLANGCI) ## the same, mending what it can
	$(GOLANGCI) run --fix ./...

VULNDB ?=
.PHONY: vuln
vuln: $(GOVULNCHECK) ## known vulnerabilities; VULNDB=folder uses a local copy of the database
	$(GOVULNCHECK) $(if $(VULNDB),-db file://$(abspath $(VULNDB))) ./...

.PHONY: clean
clean: ## remove what was built; data in storage/ stays, and so do installed tools
	rm -rf bin dist coverage.out coverage.html $(PG)

.PHONY: help
help: ## this list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo

# Always asked, because Go itself knows whether there is anything to build.
.PHONY: $(PG)
$(PG):
	@go build -o $@ ./internal/pgtest/with-postgres

$(GOLANGCI):
	@echo "building golangci-lint $(GOLANGCI_VERSION), once; this takes minutes"
	GOBIN=$(abspath $(@D)) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

$(GOVULNCHECK):
	GOBIN=$(abspath $(@D)) go install golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION)
