# Everything that is done with Tallyman's sources. `make help` lists it.

GO        ?= go
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS    = -s -w -X main.version=$(VERSION)
BUILD      = build
TALLY      = $(BUILD)/tally
# Without gRPC's traces, which would bring html/template: whatever calls methods
# by name makes the linker keep every method of every type, a sixth of the binary.
TAGS       = grpcnotrace
PACKAGES   = ./...
E2E        = -tags e2e -count=1
SEEDS     ?= 1000

export CGO_ENABLED = 0
# One set of flags for every target, so that all share one build cache.
export GOFLAGS     = -buildvcs=false -trimpath

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build the one binary, build/tally
	@mkdir -p $(BUILD)
	$(GO) build -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o $(TALLY) ./cmd/tally

.PHONY: demo
demo: setup-demo build ## run a cluster on this machine and deploy examples-repo to it by git push (root)
	@$(GO) run ./test/demo start

.PHONY: demo-stop
demo-stop: build ## end the demo and remove all that it made
	@$(GO) run ./test/demo stop

.PHONY: test
test: setup-test build vet test-unit test-sim test-e2e ## every test, against real parts (root)

.PHONY: test-short
test-short: ## tests that need neither root nor daemons, in seconds
	$(GO) test -short $(PACKAGES)

.PHONY: test-unit
test-unit: # all but the simulator, which test-sim runs
	@packages=$$($(GO) list $(PACKAGES)) && test/run.sh $(GO) test -timeout 30m $$(echo "$$packages" | grep -v '/test/sim$$')

.PHONY: test-sim
test-sim:
	@test/run.sh $(GO) test ./test/sim -count=1 -timeout 30m -seeds=$(SEEDS)

.PHONY: test-e2e
test-e2e: # packages with tests that start real parts, two at a time: they mostly wait
	@test/run.sh $(GO) test $(E2E) -p 2 -timeout 30m $$(grep -rl --include='*_test.go' '^//go:build e2e' cmd nodes proxy status sync test | xargs -n1 dirname | sort -u | grep -v '^test/bench$$' | sed 's,^,./,')

.PHONY: test-long
test-long: setup-test build ## hours: fuzzing and hundreds of thousands of simulated clusters
	$(GO) test ./test/sim -count=1 -timeout 24h -seeds=200000
	@for target in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
		for fuzz in $$(grep -rhoE '^func Fuzz[A-Za-z0-9]+' $$target/*_test.go | awk '{print $$2}'); do \
			echo "fuzz $$target $$fuzz"; $(GO) test $$target -run '^$$' -fuzz "^$$fuzz\$$" -fuzztime 10m || exit 1; \
		done; done

.PHONY: bench
bench: setup-test build ## measure speed and size beside their yardsticks; writes build/bench.json (root)
	$(GO) test -tags e2e ./test/bench -count=1 -v -timeout 60m -run TestBench

.PHONY: corpus
corpus: setup-test build ## try CORPUS=DIR, a collection of other people's manifests, or only STACK=NAME or PART=2/8 of its applications (root); writes docs/compatibility.md
	@test -n "$(CORPUS)" || { echo "say where the collection is: make corpus CORPUS=DIR"; exit 2; }
	@test -n "$(STACK)$(PART)" || $(GO) run ./test/corpus -corpus $(CORPUS) -page docs/compatibility.md
	CORPUS='$(abspath $(CORPUS))' STACK='$(STACK)' PART='$(PART)' $(GO) test -tags corpus ./test/corpus/stacks -count=1 -v -timeout 2h -run TestStacks

.PHONY: vet
vet:
	@unformatted=$$($(GO) tool gofumpt -l $$(git ls-files '*.go' | grep -v '\.pb\.go$$')); \
		test -z "$$unformatted" || { echo "not formatted, run make fmt:"; echo "$$unformatted"; exit 1; }
	$(GO) vet -tags e2e,corpus $(PACKAGES)

.PHONY: lint
lint: vet ## formatting, vet and staticcheck
	$(GO) tool staticcheck -tags e2e,corpus $(PACKAGES)

.PHONY: fmt
fmt: ## format the sources
	$(GO) tool gofumpt -w $$(git ls-files '*.go' | grep -v '\.pb\.go$$')

.PHONY: generate
generate: ## write generated pages and protocol code anew
	$(GO) generate $(PACKAGES)

# The programs that the targets need beyond Go and make, with their Debian
# packages. Nothing is installed that is there already, and no service of these
# packages is started.
DEMO_PROGRAMS = containerd=containerd runc=runc iptables=iptables git=git docker-registry=docker-registry ip=iproute2
TEST_PROGRAMS = $(DEMO_PROGRAMS) chromium=chromium curl=curl etcd=etcd-server

.PHONY: setup-demo setup-test
setup-demo: ; @sh test/setup.sh $(DEMO_PROGRAMS)
setup-test: ; @sh test/setup.sh $(TEST_PROGRAMS)
