# The front door. `make demo` and `make check` do all their set-up on a fresh Debian 12 by themselves.
BUILD ?= build
SHELL := /bin/sh
.DEFAULT_GOAL := build
.PHONY: help build demo check bench tidy asan tsan fuzz soak install clean

help: ## what there is to make
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12

build: ## the program, build/gangline
	@tools/setup build test
	@[ -f $(BUILD)/build.ninja ] || cmake -G Ninja -S . -B $(BUILD) $(OPTIONS) >/dev/null
	@ninja -C $(BUILD) --quiet

demo: build ## train a small Llama on real text and let it speak (about a minute and a half)
	@tools/setup demo
	@tools/demo $(BUILD)

check: build ## all tests
	@tools/setup check
	@tests/run $(BUILD)

bench: build ## side by side with PyTorch: ours, theirs, ratio; build/bench.json. ONLY=train for one area
	@tools/setup bench
	@/usr/bin/python3 bench/run.py --build $(BUILD) $(if $(ONLY),--only $(ONLY))

asan: ## the tests under the address and undefined-behaviour sanitizers
	@$(MAKE) --no-print-directory build BUILD=build-asan OPTIONS="-DSANITIZE=address"
	@tools/sanitized address tests/run build-asan

# What runs on several OpenMP threads (src/device, fresh weights, what trains) is left out: see tools/sanitized.
TSAN_TESTS = base yaml config safetensors tokenizer data save sample link wire small pace relay packets measure group secure soak random

tsan: ## the tests of threads of our own under the thread sanitizer
	@$(MAKE) --no-print-directory build BUILD=build-tsan OPTIONS="-DSANITIZE=thread"
	@tools/sanitized thread tests/run build-tsan $(TSAN_TESTS:%=build-tsan/test_%)

fuzz: ## every harness for SECONDS (60) each
	@tools/setup build fuzz
	@for f in tests/fuzz/fuzz_*.c; do tests/fuzz/run $$(basename $$f .c) $(or $(SECONDS),60) || exit 1; done

soak: build ## RUNS (100000) seeded networks, ROUNDS (1000) and CUTS (100) of sockets, KILLS (200) in runs; GANG_TEST_SEED=n repeats
	@GANG_TEST_RUNS=$(or $(RUNS),100000) $(BUILD)/test_link
	@GANG_TEST_RUNS=$(or $(ROUNDS),1000) GANG_TEST_CUTS=$(or $(CUTS),100) $(BUILD)/test_soak
	@GANG_TEST_KILLS=$(or $(KILLS),200) tests/run $(BUILD) tests/cmd/test_hostile.sh

tidy: build ## format, clang-tidy, and the rules of the house that a script can check
	@tools/setup tidy
	@tools/tidy $(BUILD)

install: build ## to PREFIX (/usr/local)
	@cmake --install $(BUILD) $(if $(PREFIX),--prefix $(PREFIX))

clean: ## remove everything that was built
	@rm -rf build build-asan build-tsan
