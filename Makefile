# make run: the demo.  make test: everything CI runs.  make check: format, lint, types and tests.
PYTHON ?= python3
# Where pip looks for torch. Empty: where it looks for everything (on Linux a CUDA build of some GB, unless pip knows a
# folder of wheels). PyTorch's site names an index for each build; with the CPU one: make TORCH_INDEX=<that index> run
TORCH_INDEX ?=
BIN := .venv/bin
RUN_FLAGS ?=

.PHONY: run test check lint bench clean

run: .venv/.ok
	$(BIN)/python -m trainer demo $(if $(RESUME),--resume) $(RUN_FLAGS)

test: .venv/.ok
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

check: lint test

lint: .venv/.ok
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/.ok
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.guard_overhead
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/checkpoint_damage.py
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.radiodiff_step

# torch first and by itself: once it is there, the extras' `torch` installs nothing more.
.venv/.ok: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[train,monitor,postgres,integrations,tensorboard,fuzz,test]'
	touch $@

clean:
	rm -rf .venv runs
