# Everything works from a fresh clone: each target first makes the environment in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE := 1

.PHONY: demo test quick lint bench coverage fuzz clean

demo: $(VENV)/ready
	$(BIN)/python -m benchmarks.demo

test: $(VENV)/ready lint
	$(BIN)/python -m pytest

# Under two minutes: the compiler, and the golden cases of every pass, but for what is marked slow.
quick: $(VENV)/ready
	$(BIN)/python -m pytest -m "not slow" tests/compiler tests/golden tests/test_public_api.py tests/test_docs.py

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/ready
	$(BIN)/python -m benchmarks.compile_time
	$(BIN)/python -m benchmarks.fusion
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks.quantization
	$(BIN)/python -m benchmarks.quantization_accuracy
	$(BIN)/python -m benchmarks.pruning
	$(BIN)/python -m benchmarks.pruning_coverage
	$(BIN)/python -m benchmarks.sparsity
	$(BIN)/python -m benchmarks.pruning_accuracy
	$(BIN)/python -m benchmarks.exits
	$(BIN)/python -m benchmarks.precision
	$(BIN)/python -m benchmarks.partition

coverage: $(VENV)/ready
	$(BIN)/python -m benchmarks.coverage
	$(BIN)/python -m benchmarks.readiness

fuzz: $(VENV)/ready
	$(BIN)/python -m benchmarks.fuzz

# torch alone first: where the index offers a CPU build, the pin in constraints.txt keeps pip from a CUDA one.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info
