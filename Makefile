# SPDX-License-Identifier: Apache-2.0
#
# The front door. `make` builds, `make test` tests, `make demo` shows.

JOBS ?= 2
MAKEFLAGS += --no-print-directory

# Go and C made from the eBPF sources; not committed.
EBPF_DIRS := c-abi bpf tests/middlebox
GENERATING := $(sort $(dir $(shell grep -ls '^//go:generate' $(EBPF_DIRS:=/*.go))))
GENERATE_FROM := $(wildcard $(foreach dir,$(EBPF_DIRS), $(dir)/*.c $(dir)/*.h $(dir)/gen.go \
	$(dir)/*/*.h $(dir)/*/*/*.h $(dir)/internal/*/*.go))
GENERATED := build/.generated

# runtime/cmd/NAME is build/NAME, tests/cmd/NAME is build/etran-NAME.
names = $(sort $(patsubst $(1)/%/,%,$(dir $(wildcard $(1)/*/*.go))))
COMMANDS := $(addprefix build/,$(call names,runtime/cmd))
TEST_COMMANDS := $(addprefix build/etran-,$(call names,tests/cmd))

GO_DIRS := c-abi bpf shim runtime tests
C_FILES = $(shell find $(GO_DIRS) -name '*.[ch]' ! -name vmlinux.h)

.PHONY: all deps generate c asan demo test soak fuzz lint fmt clean FORCE

all: $(COMMANDS) $(TEST_COMMANDS) c

# Debian packages that the rest needs, if any is missing.
deps:
	tests/setup

generate: $(GENERATED)

$(GENERATED): $(GENERATE_FROM) go.mod
	@mkdir -p build
	go generate $(addprefix ./,$(GENERATING))
	@touch $@

# go build knows best what is up to date.
$(TEST_COMMANDS): build/etran-%: $(GENERATED) FORCE
	go build -o $@ ./tests/cmd/$*

$(COMMANDS): build/%: $(GENERATED) FORCE
	go build -o $@ ./runtime/cmd/$*

# build/libetran.so and build/progs
build/libetran.so: c
c:
	cmake -S . -B build/c -DETRAN_OUTPUT=$(CURDIR)/build --log-level=WARNING
	cmake --build build/c -j $(JOBS)

# The unit tests of the C side, with sanitizers.
asan:
	cmake -S . -B build/asan -DETRAN_SANITIZE=ON --log-level=WARNING
	cmake --build build/asan -j $(JOBS)

demo: deps all
	build/etran-demo

# Packages run one after another: many of them own namespaces, devices and
# time. Every test counts itself; the last line is the sum.
test: deps all asan
	build/etran-tally build/asan -count=1 -p 1 -timeout 15m ./...

# The hand-over's long promises, each test with its numbers, in about an hour:
# more than 10,000 switches under load, 1,000 programs and 200 daemons killed at
# random moments, programs stopped, every fault of the wire for 20 s.
# ETRAN_LONG=N takes N times as long.
ETRAN_LONG ?= 1
SOAKING := StallOfASwitch|Soak|StreamsWhileSwitching|StoppedProgramIsDemoted|KilledProgramsDataArrives
SOAKING := $(SOAKING)|Replication|BadNeighbour
SOAKING := $(SOAKING)|KillDaemonAtRandom|DaemonDiesBetweenSteps|StreamsUnderFaults|RedisUnderFaults
soak: deps all
	ETRAN_LONG=$(ETRAN_LONG) go test -v -count=1 -timeout 0 -run '^Test($(SOAKING))$$' ./tests/system

# Every fuzzer for a while, one after another. What they find is kept in
# testdata/fuzz beside them, and runs with the tests from then on.
FUZZTIME ?= 1m
FUZZERS = $(shell grep -or --include=*_test.go '^func Fuzz[A-Za-z]*' $(GO_DIRS) | sed 's,/[^/]*:func ,:,' | sort)
fuzz: $(GENERATED)
	@for f in $(FUZZERS); do echo "== $$f" && go test ./$${f%%:*} -run XXX -fuzz "^$${f##*:}$$" \
		-fuzztime $(FUZZTIME) -fuzzminimizetime 10x -parallel 1 || exit 1; done

lint: $(GENERATED)
	@test -z "$$(gofmt -l $(GO_DIRS))" || { gofmt -d $(GO_DIRS); exit 1; }
	go vet ./...
	@clang-format-19 --dry-run -Werror $(C_FILES)

fmt:
	gofmt -w $(GO_DIRS)
	clang-format-19 -i $(C_FILES)

clean:
	rm -rf build
	rm -f $(foreach dir,$(EBPF_DIRS),$(dir)/*_bpfel.go $(dir)/*_bpfel.o $(dir)/*_bpfel_test.go)
