# SPDX-License-Identifier: Apache-2.0
# What a developer types; CI calls the same targets. Bare `make` lists them.
#   PYTHON=...   the interpreter (default: .venv/bin/python if there is one, else python3)
PYTHON ?= $(firstword $(wildcard .venv/bin/python) python3)
# cmake, ninja, ruff and the others come from PyPI: found beside the interpreter.
EXECUTABLE := $(shell $(PYTHON) -c 'import sys; print(sys.executable)')
export PATH := $(patsubst %/,%,$(dir $(EXECUTABLE))):$(PATH)
export PYTHONPATH := $(CURDIR)/python$(if $(PYTHONPATH),:$(PYTHONPATH))

CONFIGURE = cmake -S . -G Ninja -DPython_EXECUTABLE="$(EXECUTABLE)"
# One build at a time in a folder, also when two terminals ask.
LOCKED = mkdir -p build && flock build/.lock
C_FILES = $(shell find csrc kernels python/src tests/c -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cc')

.PHONY: help build test test-all test-c test-dist test-leaks test-gpu test-asan test-tsan vcuda goldens lint format stats clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

build:  ## build in place: python/paceline/_C.abi3.so (PACELINE_CUDA=1: _cuda.so too)
	$(LOCKED) sh -c '$(CONFIGURE) -B build/release -DPACELINE_INPLACE=1 -DPACELINE_CUDA=$(or $(PACELINE_CUDA),0) >build/configure.log || { cat build/configure.log; exit 1; }; cmake --build build/release'

test: build  ## C units and Python tests; of the big grids a seeded sample
	$(PYTHON) -m pytest -q

test-all: build  ## everything, the whole grids too
	$(PYTHON) -m pytest -q -m "not gpu"

test-c:  ## C units only
	$(PYTHON) -m pytest -q tests/c

test-dist: build  ## process groups, launchers, faults
	$(PYTHON) -m pytest -q tests/distributed tests/faults tests/cli

test-leaks: build  ## live counters and memory
	$(PYTHON) -m pytest -q tests/leaks

vcuda:  ## build the virtual GPU; print the variables with which paceline uses it
	@$(PYTHON) tests/vcuda.py

test-gpu: build  ## on this machine's GPU (or the virtual one, by the exports of vcuda)
	$(PYTHON) -m pytest -q -m gpu

goldens: build  ## record what this machine's GPU computes: FOLDER=tests/data/h200
	PYTHONPATH="$(PYTHONPATH):tests:." $(PYTHON) -m goldens "$(FOLDER)"

test-asan:  ## C units under AddressSanitizer and UndefinedBehaviorSanitizer
	$(LOCKED) sh -c '$(CONFIGURE) -B build/asan -DPACELINE_CUDA=0 -DPACELINE_PYTHON=0 -DPACELINE_TESTS=1 -DPACELINE_SANITIZE=address,undefined && cmake --build build/asan'
	ctest --test-dir build/asan --output-on-failure -j 2

test-tsan:  ## C units under ThreadSanitizer
	$(LOCKED) sh -c '$(CONFIGURE) -B build/tsan -DPACELINE_CUDA=0 -DPACELINE_PYTHON=0 -DPACELINE_TESTS=1 -DPACELINE_SANITIZE=thread && cmake --build build/tsan'
	ctest --test-dir build/tsan --output-on-failure

lint:  ## ruff, mypy, clang-format, codespell
	ruff check .
	ruff format --check .
	mypy
	clang-format --dry-run --Werror $(C_FILES)
	codespell csrc kernels python tests docs examples benchmarks README.md

format:  ## rewrite files to the house style
	ruff check --fix-only .
	ruff format .
	clang-format -i $(C_FILES)

stats:  ## sizes of files and functions against their budgets
	$(PYTHON) tests/meta/sizes.py

clean:  ## remove what the build made
	rm -rf build dist python/*.egg-info python/paceline/_C*.so python/paceline/_cuda.so
