# Needs Python 3.11 to 3.13, make and git. Everything it makes stands under .venv/ and var/, which git ignores.
PYTHON ?= python3
PORT ?= 3000
MLFLOW_PORT ?= 5000
BIN := .venv/bin

# dagster.yaml stands at the top of the repository; Dagster finds it here and keeps its state under var/.
export DAGSTER_HOME := $(CURDIR)
# One thread a process: two cores do more with two runs than with two runs of two threads each.
export OMP_NUM_THREADS ?= 1
export DAGSTER_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help demo demo-shuffled drop dev test unit lint format lock faults soak bench-arrivals bench-loop bench-serving bench-validation clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

.venv/.runtime: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "$(PYTHON) must be Python 3.11, 3.12 or 3.13. Name another: make PYTHON=python3.13"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.dev: requirements-dev.lock .venv/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

demo: .venv/.runtime ## Set up, then take real data from files to a champion in the registry
	@$(BIN)/ml-platform demo

demo-shuffled: .venv/.runtime ## The same customers with shuffled labels: the gates close, exit status 1
	@$(BIN)/ml-platform demo --shuffle-labels

drop: .venv/.runtime ## Drop one more file into the landing zone (while `make dev` runs)
	@$(BIN)/ml-platform demo --only-land-next

dev: .venv/.runtime ## Dagster UI and daemon on PORT (3000), MLflow UI on MLFLOW_PORT (5000), loopback only
	@$(BIN)/ml-platform dev --port $(PORT) --mlflow-port $(MLFLOW_PORT)

test: lint unit ## Set-up, lint, types, import contracts, all tests

# A process more than there are cores, as many tests wait for a server; who is done takes tests from who is not.
unit: .venv/.dev
	$(BIN)/pytest --numprocesses $(JOBS) --dist worksteal
JOBS ?= $(shell expr 1 + $$(getconf _NPROCESSORS_ONLN))

lint: .venv/.dev ## ruff, mypy --strict, import contracts; workflows, shell scripts and Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/actionlint -shellcheck $(BIN)/shellcheck -pyflakes=
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-actions .github/actions/*/action.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/shellcheck .ci/run .github/scripts/*.sh ml_platform_tests/*.sh ml_platform_tests/actions/*/run.sh
	$(BIN)/hadolint Dockerfile

format: .venv/.dev ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: .venv/.dev ## Resolve both lock files again (Linux and macOS, Python 3.11 to 3.13, hashes, no addresses)
	$(BIN)/uv pip compile $(LOCK) --extra postgres --group build -o requirements.lock
	$(BIN)/uv pip compile $(LOCK) --extra postgres --group build --group dev -c requirements.lock -o requirements-dev.lock
LOCK := pyproject.toml --quiet --upgrade --universal --python-version 3.11 --no-strip-extras --generate-hashes --no-header

faults: .venv/.dev ## Every fault of docs/faults.md with its tests and their result
	$(BIN)/python -m ml_platform_tests.faults

soak: .venv/.dev ## What takes longer than a test may: the stack is killed twenty times (KILLS=20 SEED=0 ZONE=folder|s3)
	$(BIN)/pytest -m soak

bench-arrivals: .venv/.dev ## One tick of the arrival sensor with 100,000 files waiting, in a folder and in a bucket
	for kind in folder manifests bucket bucket-manifests; do \
		$(BIN)/python -W ignore benchmarks/arrivals/bench.py $(or $(FILES),100000) $$kind || exit 1; done

bench-loop: .venv/.dev ## CPU of the main job against a plain script that does the same steps
	$(BIN)/python benchmarks/loop/bench.py

bench-serving: .venv/.dev ## Requests a second of the server, beside `mlflow models serve` with the same model file
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/serving/bench.py

bench-validation: .venv/.dev ## Parquet file to verdict, beside Great Expectations and Polars by hand (ROWS=10_000_000)
	$(BIN)/python benchmarks/validation/bench.py --rows $(ROWS)
ROWS ?= 10_000_000

clean: ## Remove the environment and all state
	rm -rf .venv var .mypy_cache .ruff_cache .pytest_cache .hypothesis
