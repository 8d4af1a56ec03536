# Two commands for users: make demo, make test. Both make .venv once and use it again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check installs installs-cpu clean

$(VENV)/ready: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed; make PYTHON=python3.12 ..."; exit 3; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; make PYTHON=python3.12 ..."; exit 3; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[cpu,dev]"
	touch $@

demo: $(VENV)/ready
	PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/motion/demo.sh

test: $(VENV)/ready
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --no-loadscope-reorder

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m benchmarks.tables --check

# Extra runtime on every declared Python, lowest and newest packages; PYTHONS='/path/to/python3.12 ...'
installs: $(VENV)/ready
	$(BIN)/python -m tests.installs

# Extra cpu; not in CI, as torch is several GB for each.
installs-cpu: $(VENV)/ready
	$(BIN)/python -m tests.installs --extra cpu --versions 3.11,3.13

clean:
	rm -rf $(VENV) build dist *.egg-info out
