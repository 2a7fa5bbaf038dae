# CGO is off: the binary is static and needs no C compiler.
SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export CGO_ENABLED  := 0
# The committed BPF objects are built with exactly these.
export BPF2GO_CC    := clang-19
export BPF2GO_STRIP := llvm-strip-19

VERSION := $(or $(shell git describe --tags --always --dirty 2>/dev/null),devel)
LDFLAGS := -s -w -X github.com/shuntnet/shunt/internal/cli.version=$(VERSION)
PREFIX  ?= /usr/local
ROOT    := $(if $(filter 0,$(shell id -u)),,sudo)

# For a single test: make test PKG=./internal/accel TESTFLAGS='-run HalfClose'
PKG       ?= ./...
TESTFLAGS ?=

# For other kernels: make test-kernels KERNELS="6.1 newest" KERNELFLAGS='-suites guarantees'
KERNELS     ?= 5.10 6.1 6.12 newest
KERNELFLAGS ?=

.PHONY: help build run test soak test-kernels deps generate man metrics lint bench bench-programs install packages clean

help: ## print the targets
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST)

build: ## build bin/shunt
	@go build -trimpath -buildvcs=false -ldflags "$(LDFLAGS)" -o bin/shunt ./cmd/shunt

run: build ## build, then show before and after: shunt demo (root)
	@$(ROOT) bin/shunt demo

# One package at a time: they share the machine's cgroups, bpffs and sockmaps. Only the test binaries run as root.
test: deps ## install what the tests need, run all of them (root)
	@go build -o bin/testcount ./internal/testcount
	@SHUNT_REQUIRE_ALL=1 go test -json -count=1 -p 1 -timeout 20m \
		$(if $(ROOT),-exec "sudo -E env PATH=$$PATH") $(TESTFLAGS) $(PKG) | bin/testcount

test-kernels: ## run the tests on other kernels, in emulated machines (KERNELS; no root but to install QEMU)
	@scripts/deps.sh kernels
	@go run ./test/kernels $(KERNELFLAGS) $(KERNELS)

soak: ## random traffic for 30 minutes, every byte checked (root); SOAK=2h for longer
	@$(if $(ROOT),sudo -E env PATH=$$PATH) go test ./test/soak -v -count=1 -timeout 0 -run 'TestSoak$$' -soak.for $(or $(SOAK),30m)

deps: ## install the apt packages that are missing
	@scripts/deps.sh

generate: ## rebuild the BPF objects and all other generated files
	@go generate ./...

man: ## rewrite the man pages in docs/man
	@rm -rf bin/man && mkdir -p bin/man
	@go run ./cmd/shunt man bin/man
	@rm -rf docs/man && mv bin/man docs/man

metrics: ## rewrite docs/metrics.md
	@mkdir -p bin && go run ./cmd/shunt metrics --describe -o markdown >bin/metrics.md
	@mv bin/metrics.md docs/metrics.md

lint: ## run golangci-lint (its first build takes a minute or two)
	@go tool -modfile=tools/go.mod golangci-lint run

bench: build ## compare the paths side by side (root)
	@$(ROOT) bin/shunt bench accel

bench-programs: build ## redis and nginx, plain and accelerated in turn (root, 3 minutes)
	@$(ROOT) bench/programs.sh bin/shunt

install: build ## install the binary, the man pages and the systemd unit under PREFIX
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/bin bin/shunt
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/man/man1 docs/man/*.1
	sed 's|/usr/local/bin|$(PREFIX)/bin|' deploy/shunt.service | install -D -m 0644 /dev/stdin $(DESTDIR)$(PREFIX)/lib/systemd/system/shunt.service

packages: build ## make a deb and an rpm in bin/ (downloads nfpm)
	@scripts/packages.sh $(VERSION)

clean: ## remove what was built
	@rm -rf bin
