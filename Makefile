# What a newcomer types. `make demo` and `make test` set up what they need themselves.

CARGO ?= cargo
# What the lab and the tests run beside Rust; Debian's names.
LAB_PACKAGES := nftables iproute2 iputils-ping
TEST_PACKAGES := $(LAB_PACKAGES) coturn conntrack iperf3 wireguard-tools wireguard-go util-linux systemd miniupnpd-nftables ethtool
LAB_TOOLS := nft ip ping
TEST_TOOLS := $(LAB_TOOLS) turnserver conntrack iperf3 wg wireguard-go nsenter systemd-analyze miniupnpd ethtool

.DEFAULT_GOAL := help
.PHONY: help demo test unit netns uml kube image interop loss peers bench bench-wireguard bench-proxy bench-turn bench-kube soak-turn lint docs setup-lab setup-test setup-interop setup-kube setup-image setup-bench-wireguard setup-uml

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup-lab ## two homes behind NATs find each other: first directly, then through a relay
	$(CARGO) build --locked --bin wice
	@echo; echo "Two homes behind usual routers: they meet directly."
	./target/debug/wice lab --nat port-restricted --nat port-restricted
	@echo; echo "Two homes behind symmetric NATs: only a relay joins them."
	./target/debug/wice lab --nat symmetric --nat symmetric
	@echo; echo "Look around in one: ./target/debug/wice lab --nat symmetric --nat cgnat --shell home-a, then wice status, wice why home-b"

test: setup-test setup-interop setup-kube unit ## every test; as root, for the network namespaces
	@# A kernel and an API server are built while netns waits for its timers: it leaves the processors nearly idle.
	@{ $(MAKE) setup-uml && nice -n 19 ./netns-tests/uml/build; nice -n 19 ./tests/kube/prepare.sh; } >target/prepare.log 2>&1 & \
	  $(MAKE) --no-print-directory netns && wait && $(MAKE) --no-print-directory uml interop kube

unit: setup-test ## unit tests, the simulation, the service, the TURN client against coturn
	$(CARGO) test --workspace --exclude wice-netns-tests --exclude wice-kube-tests --locked

netns: setup-test ## real daemons behind real kernel NATs
	$(CARGO) build --locked --bin wice
	$(CARGO) test -p wice-netns-tests --locked --lib --bins
	./netns-tests/run

# Tests whose WireGuard is chosen by the environment, and the lab itself: its NATs are those of another kernel there. The two that
# time the machine rather than the lab are left to make netns: an emulated processor proves nothing by them.
UML_TESTS := managed_kernel kernel_wireguard kernel_backend attached attached_matrix attached_crossing attached_shared_port attached_full_tunnel shared_port lab
UML_ARGS := --include-ignored --test-threads=1 --skip delay_is_as_asked --skip a_lab_of_two_homes_is_built_in_time
UML := WICE_TEST_WIREGUARD=kernel CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$(CURDIR)/netns-tests/uml/run

uml: setup-uml ## kernel WireGuard: the same on a user-mode Linux, which is built from Debian's source once
	./netns-tests/uml/build
	$(CARGO) build --locked --bin wice
	@for name in $(UML_TESTS); do \
	  $(UML) $(CARGO) test -p wice-netns-tests --locked --test $$name -- $(UML_ARGS) || { \
	    echo "== $$name failed: SECOND TRY"; \
	    $(UML) $(CARGO) test -p wice-netns-tests --locked --test $$name -- $(UML_ARGS) || exit 1; }; done
	./netns-tests/uml/run ./target/debug/wice lab --nat port-restricted --nat port-restricted
	./netns-tests/uml/run ./target/debug/wice lab --nat port-restricted --nat symmetric

image: setup-image ## what the Dockerfile puts into the image, built static and run without a container engine; x86-64, and arm64 checked
	./manifests/check-image
	@# Nothing is linked: ring's C is content with any compiler for the processor.
	CC_aarch64_unknown_linux_musl=aarch64-linux-gnu-gcc $(CARGO) check --locked --bin wice --target aarch64-unknown-linux-musl --target-dir target/image

kube: setup-kube ## the Kubernetes backend and manifests against a real API server, which is built from Go modules once
	$(CARGO) build --locked --bin wice
	$(CARGO) test -p wice-kube-tests --locked --lib --bins
	@assets=$$(./tests/kube/prepare.sh) || exit 1; \
	for name in $(basename $(notdir $(wildcard tests/kube/tests/*.rs))); do \
	  run="env KUBEBUILDER_ASSETS=$$assets $(CARGO) test -p wice-kube-tests --locked --test $$name -- --test-threads=1"; \
	  $$run || { echo "== $$name failed: SECOND TRY"; $$run || exit 1; }; done

loss: setup-test ## attached interfaces under 10 % loss for five minutes, proxy and shared port: at most one change of path
	$(CARGO) build --locked --bin wice
	WICE_LOSS_SECONDS=300 $(CARGO) test -p wice-netns-tests --locked --test attached_changes ten_per_cent -- --nocapture

peers: setup-test ## wice attach with 1,000 peers on an interface: CPU and memory at rest, a reset noticed; builds a release
	$(CARGO) build --release --locked --bin wice
	$(CARGO) test --release -p wice-netns-tests --locked --test attached a_thousand_peers -- --nocapture

interop: setup-interop ## the check engine against other ICE stacks
	./tests/interop/run.sh

bench: setup-test ## the figures of BENCHMARKS.md, on this machine
	./benches/run

bench-wireguard: setup-bench-wireguard ## in-process WireGuard against wireguard-go and gotatun; builds releases
	WIREGUARD_GO=$(CURDIR)/$(TOOLS)/bin/wireguard GOTATUN=$(CURDIR)/$(TOOLS)/bin/gotatun ./benches/run wireguard

bench-proxy: setup-test setup-bench-wireguard ## attached mode's proxy against bare forwarders; builds a release
	WIREGUARD_GO=$(CURDIR)/$(TOOLS)/bin/wireguard ./benches/run proxy

bench-turn: setup-test ## the TURN server against coturn and a bare forwarder; builds a release
	./benches/run turn

bench-kube: setup-kube ## one agent among 1,000 Nodes of a real API server
	./benches/run kube

soak-turn: ## the TURN server under everything at once for SOAK_SECONDS (1800): nothing is lost, nothing grows
	$(CARGO) test -p wice-turn --locked --test live -- --ignored --exact load::soak --nocapture

lint: ## formatting, clippy, licences, documentation
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@# It looks at the crates of every platform; what was built has fetched those of this one.
	@if command -v cargo-deny >/dev/null; then $(CARGO) fetch --locked --quiet && $(CARGO) deny --offline check licenses bans sources; \
	else echo "cargo-deny is not installed: licences are not checked (cargo install cargo-deny)"; fi
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked

# Installs Debian packages where a tool is missing; elsewhere says what is needed.
define ensure
	@missing=; for tool in $(1); do command -v $$tool >/dev/null || [ -x /usr/sbin/$$tool ] || missing="$$missing $$tool"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing:$$missing"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(2) >/dev/null; \
	  else \
	    echo "missing:$$missing"; echo "  install them first; on Debian: sudo apt-get install $(2)"; exit 1; \
	  fi; \
	fi
endef

setup-lab:
	$(call ensure,$(LAB_TOOLS),$(LAB_PACKAGES))

setup-test:
	$(call ensure,$(TEST_TOOLS),$(TEST_PACKAGES))

UML_TOOLS := flex bison bc gcc make xz

setup-uml: setup-test
	@[ "$$(uname -m)" = x86_64 ] || { echo "user-mode Linux is for x86-64 alone: kernel WireGuard cannot be tested on $$(uname -m)"; exit 1; }
	$(call ensure,$(UML_TOOLS),flex bison bc gcc libc6-dev make xz-utils)

# What in-process WireGuard is measured against: the first wireguard-go with all offloads, and gotatun.
TOOLS := target/tools
WIREGUARD_GO_VERSION := v0.0.0-20231211153847-12269c276173
GOTATUN_VERSION := 0.10.2

setup-bench-wireguard: setup-test
	$(call ensure,go,golang-go)
	[ -x $(TOOLS)/bin/wireguard ] || GOBIN=$(CURDIR)/$(TOOLS)/bin go install golang.zx2c4.com/wireguard@$(WIREGUARD_GO_VERSION)
	[ -x $(TOOLS)/bin/gotatun ] || $(CARGO) install --quiet --locked gotatun-cli --version $(GOTATUN_VERSION) --root $(TOOLS)

IMAGE_TOOLS := musl-gcc aarch64-linux-gnu-gcc readelf

setup-image:
	$(call ensure,$(IMAGE_TOOLS),musl-tools gcc-aarch64-linux-gnu libc6-dev-arm64-cross binutils)
	rustup --quiet target add $$(uname -m)-unknown-linux-musl aarch64-unknown-linux-musl

setup-kube: setup-test
	$(call ensure,go,golang-go)

INTEROP_PACKAGES := python3-venv libnice-dev gcc pkg-config golang-go golang-github-pion-ice.v2-dev

# Libraries are no commands: asked for by their files.
setup-interop: setup-test
	@if ! pkg-config --exists nice || ! [ -d /usr/share/gocode/src/github.com/pion/ice ] || ! command -v go >/dev/null \
	  || ! python3 -c 'import ensurepip' 2>/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(INTEROP_PACKAGES) >/dev/null; \
	  else \
	    echo "the interop tests need: $(INTEROP_PACKAGES)"; exit 1; \
	  fi; \
	fi
	./tests/interop/setup.sh
