# `make demo` and `make test` do everything; each makes .venv when it is missing or out of date.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DEMO   ?= demo

.PHONY: setup demo demo-detect demo-segment test test-all test-web lint types imports check bench bench-backbones clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Fullfield needs Python 3.11 or later; set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Preparing $(VENV) (once; a few minutes, most of it PyTorch) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]' || { echo "Installation failed: the lines above say why."; exit 1; }
	@touch $(READY)

demo: $(READY)
	@$(BIN)/python examples/demo.py --out $(DEMO)

demo-detect: $(READY)
	@$(BIN)/python examples/demo_detect.py --out $(DEMO)-detect

demo-segment: $(READY)
	@$(BIN)/python examples/demo_segment.py --out $(DEMO)-segment

test: $(READY)
	@$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not web"

test-all: $(READY)
	@$(BIN)/python -m pytest -n auto --dist worksteal -m "not web"

test-web: $(READY)
	@$(BIN)/python -m pytest -n0 -m web tests/web

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(READY)
	@$(BIN)/mypy

imports: $(READY)
	@$(BIN)/lint-imports

check: lint types imports test

bench: $(READY)
	@$(BIN)/python benchmarks/region_ops_cpu.py && $(BIN)/python benchmarks/racnn_cpu.py
	@$(BIN)/python benchmarks/depthwise_cpu.py --threads 1 2

bench-backbones: $(READY)
	@$(BIN)/python benchmarks/backbones_cpu.py --resume

clean:
	rm -rf $(VENV) $(DEMO) $(DEMO)-detect $(DEMO)-segment .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
