# Everything there is to do here. Each target makes the environment it needs; the second time costs nothing.
#
#   make run     start the gateway                  TIERWISE_CONFIG, TIERWISE_HOST, TIERWISE_PORT, ARGS="--state DIR"
#   make test    the whole test suite               ARGS="-k name -x", ARGS="-n 0 --pdb"
#   make check   format, lint, types, import rules  make format rewrites what it can
#   make bench   speed against peers                ARGS="--quick", LITELLM_BIN=/path/to/litellm
#   make simulate-money  what the price of money is worth, a month at a time; renews docs/price-of-money.*
#   make simulate-watch  how soon a broken promise is found; renews docs/watching.*
#   make bench-routing  what routing is worth; renews docs/routing-quality.*  TIERWISE_DATA=FOLDER ARGS="--seeds 5"
#   make simulate-loop  a router fitted on its own decisions, round by round; renews docs/exploring.*
#   make reliability  runs that try to break the money; renews docs/reliability.md  ARGS="--only bar1,bar8 --fast"
#   make lock    requirements/*.txt from pyproject  ARGS="--upgrade" or ARGS="--upgrade-package NAME"
#   make clean   forget the environments and caches

RUN := .venv
DEV := .venv-dev
SHELL := /bin/sh
MAKEFLAGS += --no-print-directory

# With it set, Python compiles every module again at every start.
unexport PYTHONDONTWRITEBYTECODE
unexport PYTHONPATH

.PHONY: help run test check format bench simulate-money simulate-loop simulate-watch bench-routing reliability lock node-sdk clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

run: $(RUN)/ready
	@exec $(RUN)/bin/tierwise serve $(ARGS)

test: $(DEV)/ready node-sdk
	$(DEV)/bin/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile $(ARGS)

check: $(DEV)/ready
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/ruff check .
	$(DEV)/bin/mypy
	$(DEV)/bin/lint-imports

format: $(DEV)/ready
	$(DEV)/bin/ruff format .
	$(DEV)/bin/ruff check --fix .

bench: $(DEV)/ready
	$(DEV)/bin/python -m benchmarks $(ARGS)

simulate-money: $(DEV)/ready
	$(DEV)/bin/python -m scripts.simulate_money --write $(ARGS)

simulate-loop: $(DEV)/ready
	OPENBLAS_NUM_THREADS=1 $(DEV)/bin/python -m scripts.simulate_loop --write $(ARGS)

simulate-watch: $(DEV)/ready
	$(DEV)/bin/python -m scripts.simulate_watch --write $(ARGS)

# One thread a process: the two processes of the bench have a core each.
bench-routing: $(DEV)/ready
	OPENBLAS_NUM_THREADS=1 $(DEV)/bin/tierwise bench routing --write docs/routing-quality.md $(ARGS)

reliability: $(DEV)/ready
	$(DEV)/bin/python -m scripts.reliability $(ARGS)

lock: $(DEV)/ready
	scripts/lock.sh $(DEV)/bin/uv $(ARGS)

# Soft: without Node the tests that need it say so and skip.
node-sdk:
	@scripts/node_sdk.sh

clean:
	rm -rf $(RUN) $(DEV) .venv*.lock .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find src tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +

INPUTS := requirements/build.txt pyproject.toml scripts/make_env.py

$(RUN)/ready: requirements/run.txt $(INPUTS)
	@python=$$(scripts/find_python.sh) && "$$python" scripts/make_env.py $(RUN) $<

$(DEV)/ready: requirements/dev.txt $(INPUTS)
	@python=$$(scripts/find_python.sh) && "$$python" scripts/make_env.py $(DEV) $<
