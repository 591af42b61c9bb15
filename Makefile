# make demo      the tour: real tissue -> fused domains -> demo_output/report.html
#                with another method: ARGS='--method aestetik'; with a network: ARGS='--encoder efficientnet-lite0'
# make test      the test suite without its slow part; everything: make test ARGS='-m ""'
# make lint types docs clean
#
# Each needs only Python 3.12 or later: it makes an environment in VENV once, and uses it again afterwards.

VENV ?= .venv
OUT ?= demo_output
JOBS ?= 2
ARGS ?=
PY = "$(VENV)/bin/python"
export PYTHON

.PHONY: help demo test lint types docs clean
.NOTPARALLEL:

help:
	@sed -n 's/^# \{0,1\}//p' Makefile

demo:
	@scripts/install.sh "$(VENV)"
	$(PY) -m stfuse demo --out "$(OUT)" $(ARGS)

# One thread a worker: the workers share the cores already.
test:
	@scripts/install.sh "$(VENV)" test
	OMP_NUM_THREADS=1 MPLBACKEND=agg $(PY) -m pytest -n $(JOBS) --dist loadfile -m "not slow" $(ARGS)

lint:
	@scripts/install.sh "$(VENV)" dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types:
	@scripts/install.sh "$(VENV)" dev
	$(PY) -m mypy

docs:
	@scripts/install.sh "$(VENV)" doc
	$(PY) -m sphinx -M html docs docs/_build -W --keep-going

# What builds, tests and the demo wrote. The environment stays: remove its folder to be rid of it.
clean:
	rm -rf build dist docs/_build docs/api docs/generated docs/notebooks demo_output \
		.pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.* coverage.xml
	find src tests docs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
