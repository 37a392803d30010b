# Every target does its own set-up. `make` alone prints the list.
GO      ?= go
DIST    := dist
VERSION ?= 0.1.0
LDFLAGS := -s -w -X main.version=$(VERSION)
BUILD   := CGO_ENABLED=0 $(GO) build -trimpath -ldflags "$(LDFLAGS)"
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo -E env "PATH=$$PATH")

.PHONY: help build setup test test-kernels attack lint generate demo bench bench-guard bench-bundle journey e2e e2e-host k3s clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## Build the programs into dist/
	$(BUILD) -o $(DIST)/clawbox ./cmd/clawbox
	$(BUILD) -o $(DIST)/clawbox-launch ./cmd/clawbox-launch
	$(BUILD) -o $(DIST)/clawbox-runc ./cmd/clawbox-runc
	$(BUILD) -o $(DIST)/clawbox-cluster ./cmd/clawbox-cluster

setup: ## Install the Debian packages that the demo and the tests need
	@$(AS_ROOT) sh internal/tools/setup.sh

test: setup ## Run every test (as root: they make real sandboxes)
	$(AS_ROOT) env CLAWBOX_ENGINE="$(abspath $(wildcard $(DIST)/ollama))" $(GO) test -timeout 20m ./...

test-kernels: ## Run the tests that depend on the kernel in virtual machines with Debian's 6.1 and 6.12
	@$(AS_ROOT) sh internal/tools/setup.sh kernels
	$(AS_ROOT) $(GO) run ./internal/vm/kernels -cache $(DIST)/vm

attack: setup build ## Attack a real sandbox in every known way; each attempt must fail and be recorded
	$(BUILD) -o $(DIST)/attack-inside ./cmd/clawbox-attack/inside
	$(AS_ROOT) $(GO) run ./cmd/clawbox-attack -dist $(DIST) -json $(DIST)/attack.json

lint: ## Check formatting, vet, staticcheck; govulncheck where its database answers
	@sh internal/tools/lint.sh

generate: ## Rebuild the committed BPF objects and check that they did not drift
	@$(AS_ROOT) sh internal/tools/setup.sh generate
	$(GO) generate ./appliance/guard
	git diff --exit-code -- 'appliance/guard/*_bpfel*'

demo: setup build ## Bundle, verify, install offline, govern a real agent, prove the record
	$(AS_ROOT) $(GO) run ./cmd/clawbox-demo -dist $(DIST)

bench: build ## Run the benchmarks
	$(AS_ROOT) $(GO) test -run '^$$' -bench . -benchmem ./...

bench-guard: setup build ## Measure the guard beside the bare host, bubblewrap and runc; writes docs/bench-guard.md and .svg
	@$(AS_ROOT) sh internal/tools/setup.sh bench
	$(AS_ROOT) $(GO) run ./cmd/clawbox-bench guard

bench-bundle: setup build $(DIST)/openclaw/index.json ## Measure create, inspect, verify and install beside zarf; writes docs/bench-bundle.md and .svg
	GO="$(GO)" sh internal/tools/peers.sh $(DIST)/peers
	$(AS_ROOT) $(GO) run ./cmd/clawbox-bench bundle $(BENCH)

$(DIST)/openclaw/index.json:
	$(AS_ROOT) $(GO) run ./airgap-manifests/openclaw/cmd/openclaw-image -work $(DIST)/openclaw-work -o $(DIST)/openclaw

journey: setup ## Run the journey of a small release through the command line, with faults injected
	$(AS_ROOT) $(GO) test -count=1 -timeout 30m -run 'TestJourney|TestComplete|TestPaced|TestNearlyFull' -v ./cmd/clawbox

e2e: setup ## Take an appliance through its life on fresh offline machines (QEMU, Debian 6.1 and 6.12); E2E="-kernel 6.12" for one
	@$(AS_ROOT) sh internal/tools/setup.sh kernels
	$(AS_ROOT) env "PATH=$$PATH" $(GO) run ./internal/vm/e2e -cache $(DIST)/vm $(E2E)

e2e-host: k3s ## Take a cluster on real K3s, on this machine in namespaces without a way out, from 1.34 to 1.35, through a failed upgrade and a power cut, and back
	$(AS_ROOT) env CLAWBOX_K3S="$(abspath $(DIST)/k3s)" $(GO) test -count=1 -timeout 25m -run 'TestClusterUpgrade$$|TestClusterJoin|TestPodsOnK3s' -v ./cmd/clawbox
	$(AS_ROOT) env CLAWBOX_K3S="$(abspath $(DIST)/k3s)" $(GO) test -count=1 -timeout 15m -run 'TestTwoNodes' -v ./internal/k3shost

k3s: ## Build K3s 1.34 and 1.35 with runtime and images from Go modules into dist/k3s; K3S="1.35" for one
	@$(AS_ROOT) sh internal/tools/setup.sh k3s
	cd airgap-manifests/k3s/runtime && GOWORK=off $(GO) vet ./... && GOWORK=off $(GO) test ./...
	$(GO) run ./airgap-manifests/k3s/cmd/k3s-artifact -o $(DIST)/k3s $(or $(K3S),1.35 1.34)

clean: ## Remove what was built
	rm -rf $(DIST)
