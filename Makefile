# One command per need. Each target does the set-up it needs; what is done leaves a stamp in .setup/, so that a second
# run takes seconds. Tests, demo and benchmarks use the package as installed in .venv, never the source tree.
#
#   make demo            the main job in network namespaces (root); KEEP=1 leaves it up and says how to enter
#   make sweep           removes what a kept demo left up
#   make test            all tests; ROOMS="unit kernel" some of them; ARGS="-k replay" for pytest
#   make bench           the benchmarks, beside kernel VXLAN and other overlays; QUICK=1: one short round of each;
#                        in pieces: BENCH=throughput ARGS="--wire offloads --cases tcp1,tcp4"
#   make lint            ruff, mypy, stubtest, cython-lint, layering, documentation
#   make debug           builds with live-buffer counters and asserts, runs unit and kernel tests on it
#   make asan            builds with address and undefined-behaviour sanitizers, runs unit and security tests on it
#   make fuzz            10^6 inputs for every decoder, under the sanitizers; FUZZ_INPUTS=n for another number, goes
#                        on where it was ended; ARGS="--seconds 300 -k mesh" bounds an entry, takes some of them
#   make soak-kernel     the kernel tests with a hundred times the traffic
#   make soak-cni        10,000 rounds of ADD and DEL with the executable and the router killed, 1,000 pods that ping;
#                        in pieces: ROUNDS=2500 SEED=4 make soak-cni ARGS="-k killed"
#   make soak-mesh       the mesh tests with 600 pods where make test has 60
#   make check-ipam      searches the greater worlds of address ownership (two hours), results in docs/results/
#   make image           the container image, by docker, podman or buildah; IMAGE=name:tag names it
#   make demo-kubernetes a real cluster of three nodes, the manifest applied, pods that talk (root)
#   make test-kubernetes the tests on that cluster; the first run builds Kubernetes, 10 minutes; CONFORMANCE=1 runs
#                        Kubernetes' own network tests instead, with the reference plugins and with ours
#   make soak-kubernetes five minutes without the API server, two with both CPUs saturated, sixty pods at once beside
#                        the reference plugins, and a cluster's life at length; an hour, results in docs/results/; in
#                        pieces: make soak-kubernetes PART="many or z_soak" SOAK_MINUTES=5
#   make install         the router and its systemd unit on this machine; make uninstall undoes it

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --retries 5 -q
export PATH := $(abspath $(BIN)):$(PATH)
unexport PYTHONPATH

ROOMS ?=
ARGS ?=
FUZZ_INPUTS ?= 1000000
PREFIX ?= /opt/weave-router
BINDIR ?= /usr/local/bin
UNITDIR ?= /etc/systemd/system
CONFDIR ?= /etc/weave-router

# -- set-up ------------------------------------------------------------------------------------------------------

SOURCES := $(shell find weave_router cni_shim -type f ! -name '*.so' ! -name '*.pyc' ! -name '*.c.tmp' 2>/dev/null) \
           meson.build meson_options.txt pyproject.toml

.PHONY: help setup
help:
	@sed -n 's/^#   make/make/p' Makefile

setup: .setup/release

.setup/packages: .ci/packages
	@mkdir -p .setup
	@.ci/packages
	@touch $@

.setup/clients: .ci/packages
	@mkdir -p .setup
	@.ci/packages clients
	@touch $@

.setup/venv: .setup/packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "weave-router needs Python 3.11 or newer")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@touch $@

# The list changes when pyproject.toml changes what is needed, not with every edit of it.
.setup/requirements.txt: pyproject.toml .ci/requirements .setup/venv
	@$(BIN)/python .ci/requirements build dev > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

.setup/dependencies: .setup/requirements.txt .ci/constraints.txt
	@echo "Installing Python packages into $(VENV)"
	@$(PIP) install -c .ci/constraints.txt --upgrade pip  # Debian 12's cannot pass several settings to a build
	@$(PIP) install -r .setup/requirements.txt -c .ci/constraints.txt
	@touch $@

# Names of all sources: a removed file is a change too.
.PHONY: force
.setup/sources: force
	@mkdir -p .setup
	@printf '%s\n' $(sort $(SOURCES)) > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

# $(call build,NAME,SETUP ARGUMENTS,PIP ARGUMENTS): build NAME in build/NAME, with pip's output only when it fails.
comma := ,
define build
	@echo "Building ($(1))"
	@mkdir -p build/$(1)
	@$(PIP) install --no-build-isolation --no-deps $(3) -Cbuild-dir=build/$(1) \
	  $(foreach argument,$(2),-Csetup-args=$(argument)) . > build/$(1).log 2>&1 \
	  || { cat build/$(1).log; exit 1; }
endef

.setup/release: .setup/dependencies .setup/sources $(SOURCES)
	$(call build,release,-Dbuildtype=release -Dweave_debug=false,)
	@touch $@

# The other builds stand beside the installed one and shadow it only for those who ask, by PYTHONPATH.
.setup/debug: .setup/dependencies .setup/sources $(SOURCES)
	@rm -rf build/debug-site
	$(call build,debug,-Dbuildtype=debugoptimized -Dweave_debug=true,--target build/debug-site)
	@touch $@

.setup/asan: .setup/dependencies .setup/sources $(SOURCES)
	@rm -rf build/asan-site
	$(call build,asan,-Dbuildtype=debugoptimized -Dweave_debug=true -Db_sanitize=address$(comma)undefined -Db_lundef=false,\
	  --target build/asan-site)
	@touch $@

# -- run ---------------------------------------------------------------------------------------------------------

.PHONY: demo sweep test bench lint debug asan fuzz soak-cni soak-kernel soak-mesh check-ipam
demo: .setup/release
	@KEEP=$(KEEP) PYTHONPATH=$(CURDIR)/tests $(BIN)/python -P -m lab.demo

sweep: .setup/release
	@PYTHONPATH=$(CURDIR)/tests $(BIN)/python -P -m lab.demo --sweep

test: .setup/release .setup/clients
	@$(BIN)/python .ci/rooms $(ROOMS) -- $(ARGS)

# QUICK=1: one short round of each, to see that all of it runs (3 minutes); figures are medians of five.
BENCH ?= throughput others pressure curves cni
BENCH_ROUNDS = $(if $(QUICK),1,5)
QUICK_throughput = --seconds 0.3 --wire segmented --wire offloads-netfilter
QUICK_others = --seconds 1 --wire segmented
QUICK_pressure = --seconds 1 --wire segmented
QUICK_curves = --seconds 0.5 --points 2
QUICK_cni = --pods 20
.setup/bench: .setup/dependencies
	@.ci/packages bench
	@$(BIN)/python .ci/requirements bench > $@.txt
	@$(PIP) install -r $@.txt -c .ci/constraints.txt
	@touch $@

bench: .setup/release .setup/bench .setup/clients
	@failed=0; $(foreach script,$(BENCH),echo "== $(script)"; \
	  PYTHONPATH=$(CURDIR)/tests $(BIN)/python -P benchmarks/$(script).py --rounds $(BENCH_ROUNDS) \
	  $(if $(QUICK),$(QUICK_$(script))) $(ARGS) || failed=1; ) \
	$(BIN)/python -P benchmarks/plots.py; exit $$failed

lint: .setup/release
	@$(BIN)/python .ci/rooms quality -- $(ARGS)

debug: .setup/release .setup/debug
	@PYTHONPATH=$(CURDIR)/build/debug-site $(BIN)/python .ci/rooms unit kernel -- $(ARGS)

ASAN = PYTHONPATH=$(CURDIR)/build/asan-site PYTHONMALLOC=malloc \
  LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libstdc++.so.6)" \
  ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1

asan: .setup/release .setup/asan
	@$(ASAN) $(BIN)/python .ci/rooms unit security -- $(ARGS)

fuzz: .setup/asan
	@$(ASAN) $(BIN)/python .ci/fuzz --inputs $(FUZZ_INPUTS) $(ARGS)

soak-cni: .setup/release .setup/clients
	@SOAK=1 $(BIN)/python .ci/rooms cni -- --timeout=0 -k soak $(ARGS)

soak-kernel: .setup/release
	@SOAK=1 $(BIN)/python .ci/rooms kernel -- --timeout=0 $(ARGS)

soak-mesh: .setup/release
	@SOAK=1 $(BIN)/python .ci/rooms mesh -- --timeout=0 $(ARGS)

check-ipam: .setup/release
	@PYTHONPATH=$(CURDIR)/tests $(BIN)/python -P -m model.search --minutes 10 --total-minutes 115 --mebibytes 12288 \
	  --results docs/results/ipam-search.json $(ARGS)

# -- kubernetes --------------------------------------------------------------------------------------------------

.PHONY: image demo-kubernetes test-kubernetes soak-kubernetes
image:
	@deploy/image $(IMAGE)

demo-kubernetes: .setup/release .setup/packages-kubernetes
	@PYTHONPATH=$(CURDIR)/tests $(BIN)/python -P -m kubernetes.demo

test-kubernetes: .setup/release .setup/packages-kubernetes
	@tests/kubernetes/programs/build $(if $(CONFORMANCE),--e2e)
	@PYTHONPATH=$(CURDIR)/tests $(BIN)/python -P -m kubernetes.images
	@$(if $(CONFORMANCE),PYTHONPATH=$(CURDIR)/tests $(BIN)/python -P -m kubernetes.conformance $(ARGS),\
	  $(BIN)/python .ci/rooms kube kubernetes k3s -- $(ARGS))

soak-kubernetes: PART ?= away or saturated or many or y_restart or test_z_fence or test_z_soak
soak-kubernetes: .setup/release .setup/packages-kubernetes
	@tests/kubernetes/programs/build
	@PYTHONPATH=$(CURDIR)/tests $(BIN)/python -P -m kubernetes.images
	@SOAK=1 $(BIN)/python .ci/rooms kubernetes -- --timeout=0 -rP -k "$(PART)" $(ARGS)

.setup/packages-kubernetes: .ci/packages
	@.ci/packages kubernetes
	@touch $@

# -- install -----------------------------------------------------------------------------------------------------

.PHONY: install uninstall clean
install: .setup/dependencies
	@test "$$(id -u)" = 0 || { echo "make install needs root"; exit 1; }
	@echo "Installing into $(PREFIX)"
	@rm -rf build/dist
	@$(BIN)/pip wheel -q --disable-pip-version-check --no-build-isolation --no-deps -Cbuild-dir=build/wheel -w build/dist .
	@$(PYTHON) -m venv --clear $(PREFIX)
	@$(PREFIX)/bin/pip --disable-pip-version-check -q install -c .ci/constraints.txt build/dist/*.whl
	@install -d $(BINDIR) $(UNITDIR)
	@install -d -m 0700 $(CONFDIR)
	@ln -sfn $(PREFIX)/bin/weave-router $(BINDIR)/weave-router
	@sed 's,/usr/local/bin/,$(BINDIR)/,; s,/etc/weave-router/,$(CONFDIR)/,' deploy/weave-router.service \
	  > $(UNITDIR)/weave-router.service
	@if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
	@echo "Next: weave-router token new > $(CONFDIR)/token, the same file on every host,"
	@echo "options in $(CONFDIR)/environment, then systemctl enable --now weave-router"

uninstall:
	@if [ -d /run/systemd/system ]; then systemctl disable --now weave-router || true; fi
	@rm -rf $(PREFIX) $(BINDIR)/weave-router $(UNITDIR)/weave-router.service
	@echo "Left: $(CONFDIR), and what weave-router reset removes: bridge, TAP, /var/lib/weave-router"

clean:
	@rm -rf build .setup
