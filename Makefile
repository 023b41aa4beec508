# make demo      caption a picture with the built-in model (PICTURE=path for your own)
# make test      the test suite, no network needed;  make test-all adds the slow tests
# make bench     measure the built-in model;  bench-decode every decoding rule, bench-speed the loop,
#                bench-training pairs and the training loop, bench-masks pairs against single masks
# make lint type oldest clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PICTURE ?=
WORKERS ?= 2
OLDEST_TORCH ?= 2.9.0
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-all bench bench-decode bench-speed bench-training bench-masks lint type clean oldest

.venv: .venv/.ok

# torch first and alone: pip then keeps the build that fits this machine.
.venv/.ok: pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[vision,dev]'
	touch $@

# The model itself may use every core.
demo: .venv/.ok
	env -u OMP_NUM_THREADS $(BIN)/mmdiff demo $(if $(PICTURE),"$(PICTURE)")

test: .venv/.ok
	$(BIN)/python -m pytest -x -q -n $(WORKERS) tests

test-all: .venv/.ok
	$(BIN)/python -m pytest -q -n $(WORKERS) -m 'slow or not slow' tests

bench: .venv/.ok
	env -u OMP_NUM_THREADS $(BIN)/mmdiff bench

bench-decode: .venv/.ok
	env -u OMP_NUM_THREADS $(BIN)/mmdiff bench decode --output runs/bench-decode

bench-speed: .venv/.ok
	$(BIN)/python -m tests.speed

bench-training: .venv/.ok
	$(BIN)/python -m tests.speed_training

bench-masks: .venv/.ok
	$(BIN)/python -m tests.compare_masks

lint: .venv/.ok
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot follow the root folders in the checkout, so it reads the wheel.
type: .venv/.ok
	rm -rf build/typing
	$(BIN)/pip wheel -q --no-deps --no-build-isolation -w build/typing .
	$(BIN)/pip install -q --no-deps --target build/typing/site build/typing/*.whl
	cd build/typing && MYPYPATH=site ../../$(BIN)/mypy --config-file ../../pyproject.toml -p mmdiff

# The suite on the oldest versions that pyproject.toml allows.
oldest:
	rm -rf .venv-oldest
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install -q -c constraints-oldest.txt torch==$(OLDEST_TORCH) -e '.[vision,dev]'
	.venv-oldest/bin/python -m pytest -x -q -n $(WORKERS) tests

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .venv-oldest
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
