# What a person or CI runs. The first run of `demo` and `test` installs what they need; see tests/bed/setup.sh.

PREFIX  ?= /usr
DESTDIR ?=
CARGO   ?= cargo
# A profile of cargo; its programs are in a directory of that name, except for one.
PROFILE ?= release
BUILT   := $(or $(CARGO_TARGET_DIR),target)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
# Guests, images and the daemon need root.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env)

export PATH := $(HOME)/.cargo/bin:$(PATH)

.PHONY: all build demo test guests check histories faults soak mutants fuzz flat kills crowd traces bench install deb package-test clean

all: build

build:
	$(CARGO) build --profile $(PROFILE) --bins

# A real guest, the daemon and the client. Ends with "demo: ok" and leaves nothing behind.
demo:
	tests/bed/run.sh sh -c '$(CARGO) build --profile $(PROFILE) --bins --example demo && exec $(AS_ROOT) $(BUILT)/examples/demo'

# What is tested within 25 minutes, end to end on real guests too. The long runs have commands of their own, below.
test:
	tests/bed/run.sh --with-python $(MAKE) check run-tests

check:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
	    $(CARGO) deny check bans licenses sources; \
	else \
	    echo "check: no cargo-deny, so licences and bans are not checked"; \
	fi

# Test programs that need root get it from cargo's runner. `cargo test` runs one of them after the other.
.PHONY: run-tests
ifneq ($(AS_ROOT),)
run-tests guests kills crowd traces bench: export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER = $(AS_ROOT)
endif
# Most of them wait for QEMU and libvirt most of the time.
run-tests: export RUST_TEST_THREADS ?= $(shell expr 2 '*' $$(nproc))
run-tests:
	$(CARGO) test

# All of tests/guests on real guests: the long ones, too.
guests:
	tests/bed/run.sh $(CARGO) test --test guests -- --include-ignored --skip crowd::

# The random histories of tests/engine/histories.rs, many more of them than a test run has time for.
HISTORIES ?= 20000
histories:
	PROPTEST_CASES=$(HISTORIES) $(CARGO) test --release --test engine histories

# The faults of tests/engine, crash and lost_catalog, all of them. It ends with a table: what came of which fault at which call.
faults:
	VMSNAP_ALL_FAULTS=1 $(CARGO) test --test engine -- crash lost_catalog
	@cat $(or $(CARGO_TARGET_DIR),target)/tmp/faults.md

# The simulated nodes of tests/simulation, many more of them. A seed that fails runs alone with VMSNAP_SEED.
SEEDS ?= 50000
FIRST_SEED ?= 1
soak:
	VMSNAP_FIRST_SEED=$(FIRST_SEED) VMSNAP_SEEDS=$(SEEDS) $(CARGO) test --release --test simulation seeds -- --nocapture

# Each broken engine of tests/mutants.rs, and how the simulation sees that it is broken. VMSNAP_MUTANT picks those whose
# rule has these words.
mutants:
	$(CARGO) test --test mutants -- --ignored --nocapture

# All readers of what comes from outside, on inputs that were bent: so many for each. Not in release: an overflow must
# show itself.
FUZZ ?= 20000
fuzz:
	PROPTEST_CASES=$(FUZZ) $(CARGO) test --lib -- any_ fuzz

# Whether the heap grows with what was done: tests/flat.rs.
flat:
	$(CARGO) test --test flat -- --ignored --nocapture

# The kills of tests/kills on real guests, for so many minutes. It ends with a summary of what was done and what came of it.
MINUTES ?= 60
GUESTS  ?= 4
SEED    ?= 2026
kills: export VMSNAP_KILLS_MINUTES = $(MINUTES)
kills: export VMSNAP_KILLS_GUESTS = $(GUESTS)
kills: export VMSNAP_KILLS_SEED = $(SEED)
kills:
	tests/bed/run.sh $(CARGO) test --test kills -- --nocapture

# 200 clients and 1,000 watchers of one node, for so many minutes.
CROWD_MINUTES ?= 10
crowd:
	tests/bed/run.sh env VMSNAP_CROWD_MINUTES=$(CROWD_MINUTES) $(CARGO) test --test guests -- crowd:: --ignored --nocapture

# The feature `opentelemetry`: a collector gets the spans of a call on a real guest.
traces:
	tests/bed/run.sh $(CARGO) test --features opentelemetry --test guests -- traces

# Lists out of 100,000 snapshots; real guests under vmsnap, virsh and a script of it, with a table and plots. BLOCKS is how often
# all of them are run there and back.
BLOCKS ?= 4
bench: export VMSNAP_BENCH_BLOCKS = $(BLOCKS)
bench:
	tests/bed/run.sh $(CARGO) bench

install: build
	install -D -m 755 $(BUILT)/vmsnapd $(DESTDIR)$(PREFIX)/bin/vmsnapd
	install -D -m 755 $(BUILT)/vmsnap $(DESTDIR)$(PREFIX)/bin/vmsnap
	install -D -m 644 systemd/vmsnapd.service $(DESTDIR)$(PREFIX)/lib/systemd/system/vmsnapd.service
	install -D -m 644 systemd/vmsnapd.socket $(DESTDIR)$(PREFIX)/lib/systemd/system/vmsnapd.socket
	install -D -m 644 systemd/vmsnapd-network.conf $(DESTDIR)$(PREFIX)/share/vmsnapd/network.conf
	install -D -m 644 packaging/vmsnapd.toml $(DESTDIR)$(PREFIX)/share/vmsnapd/vmsnapd.toml
	install -D -m 644 systemd/vmsnapd.catalog $(DESTDIR)$(PREFIX)/lib/systemd/catalog/vmsnapd.catalog
	install -D -m 644 systemd/vmsnapd.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/vmsnapd.conf
	install -D -m 644 systemd/vmsnapd.tmpfiles $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/vmsnapd.conf
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/vendor-completions \
	    $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d $(DESTDIR)$(PREFIX)/share/man/man1
	$(BUILT)/vmsnap completions bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/vmsnap
	$(BUILT)/vmsnap completions zsh > $(DESTDIR)$(PREFIX)/share/zsh/vendor-completions/_vmsnap
	$(BUILT)/vmsnap completions fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/vmsnap.fish
	$(BUILT)/vmsnap man --dir $(DESTDIR)$(PREFIX)/share/man/man1

# A Debian package, and one with its debug symbols, in target/debian. REVISION comes after the version.
REVISION ?= 1
deb: build
	packaging/debian/build.sh $(PROFILE) $(abspath $(BUILT)) $(REVISION)

# The package in clean Debian roots: lintian, installation, the demo with what it installed, an upgrade, a removal; and all of
# that under systemd in a machine of its own.
package-test: export VMSNAP_PROFILE = $(PROFILE)
package-test: export VMSNAP_BUILT = $(abspath $(BUILT))
package-test:
	tests/bed/run.sh tests/package/run.sh

clean:
	$(CARGO) clean
	rm -rf .testbed
