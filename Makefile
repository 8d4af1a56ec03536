# Two commands for users: make demo, make test. Both make .venv once and use it again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Many images set it; then each program that the tests start compiles the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo docs test test-rest test-all fuzz check installs installs-cpu clean

$(VENV)/ready: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed; make PYTHON=python3.12 ..."; exit 3; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; make PYTHON=python3.12 ..."; exit 3; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[cpu,dev]"
	touch $@

demo: $(VENV)/ready
	PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/motion/demo.sh

# The site, out/docs/index.html; a warning is an error.
docs: $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[docs]"
	$(BIN)/python -m sphinx -q -E -W --keep-going -b html -c docs . out/docs

PYTEST = $(BIN)/python -m pytest -n auto --maxprocesses 4 --no-loadscope-reorder

# Five minutes on two fast cores: what proves the numbers, wing by wing (tests/conftest.py has the rule).
test: $(VENV)/ready
	$(PYTEST) -m "not slow"

# The rest: whole commands and grids, C++, plans by TensorRT-RTX, packaging, browser, strace.
test-rest: $(VENV)/ready
	$(PYTEST) -m slow

# Readers of the C++ library on damaged input; needs clang++.
fuzz:
	sh cpp/fuzz.sh --seconds 60

# Everything, each test once.
test-all: test test-rest installs fuzz

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m benchmarks.tables --check

# Extra runtime on every declared Python, lowest and newest packages; PYTHONS='/path/to/python3.12 ...'
# Then exported graphs in the oldest ONNX Runtime of each opset.
installs: $(VENV)/ready
	$(BIN)/python -m tests.installs
	$(BIN)/python -m tests.installs.old_runtimes

# Extra cpu; not in CI, as torch is several GB for each.
installs-cpu: $(VENV)/ready
	$(BIN)/python -m tests.installs --extra cpu --versions 3.11,3.13

clean:
	rm -rf $(VENV) build dist *.egg-info out
