# Needs Python 3.11 to 3.13, make and git. All output goes to .venv/ and var/, which git ignores.
PYTHON ?= python3
PORT ?= 3000
MLFLOW_PORT ?= 5000
BIN := .venv/bin

# Dagster reads dagster.yaml from this folder and stores its state in var/.
export DAGSTER_HOME := $(CURDIR)
# One thread for each process: on two cores, two runs of one thread are faster than two runs of two threads.
export OMP_NUM_THREADS ?= 1
export DAGSTER_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help demo demo-shuffled drop dev test test-fast test-servers unit lint format lock docs reference faults soak bench-arrivals bench-loop bench-serving bench-validation clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

.venv/.runtime: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "$(PYTHON) must be Python 3.11, 3.12 or 3.13. Choose another: make PYTHON=python3.13"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.dev: requirements-dev.lock .venv/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

demo: .venv/.runtime ## Set up, then run the main job: from files of real data to a champion in the registry
	@$(BIN)/ml-platform demo

demo-shuffled: .venv/.runtime ## The same customers with shuffled labels: gates fail, exit status 1
	@$(BIN)/ml-platform demo --shuffle-labels

drop: .venv/.runtime ## Drop one more file into the landing zone (while `make dev` runs)
	@$(BIN)/ml-platform demo --next-file

dev: .venv/.runtime ## Dagster UI and daemon on PORT (3000), MLflow UI on MLFLOW_PORT (5000), loopback only
	@$(BIN)/ml-platform dev --port $(PORT) --mlflow-port $(MLFLOW_PORT)

test: lint unit ## Set up, lint, types, import contracts, all tests except test-servers

test-fast: .venv/.dev ## Tests of the pure rooms in under a minute: no servers, no Dagster runs, no processes that load a model
	$(BIN)/pytest --numprocesses $(FAST_JOBS) --dist worksteal -p no:schemathesis -m "not slow and not servers and not soak" \
		$(NOT_FAST:%=--ignore=ml_platform_tests/%)
NOT_FAST := ci cli deploy devtools e2e faults github orchestration serving
FAST_JOBS ?= $(shell getconf _NPROCESSORS_ONLN)

test-servers: .venv/.dev ## Tests that need chromium or strace (apt-get install), or take over 20 seconds each
	$(BIN)/pytest --numprocesses $(JOBS) --dist worksteal -m "servers and not soak"

# One worker more than cores, because many tests wait for a server; idle workers take tests from busy ones.
unit: .venv/.dev
	$(BIN)/pytest --numprocesses $(JOBS) --dist worksteal
JOBS ?= $(shell expr 1 + $$(getconf _NPROCESSORS_ONLN))

lint: .venv/.dev ## ruff, mypy --strict, sentences, import contracts, workflows, shell scripts, Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m ml_platform_tests.plain_english
	$(BIN)/lint-imports
	$(BIN)/actionlint -shellcheck $(BIN)/shellcheck -pyflakes=
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-actions .github/actions/*/action.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/shellcheck .ci/run .github/scripts/*.sh ml_platform_tests/deploy/*.sh ml_platform_tests/support/actions/*/run.sh
	$(BIN)/hadolint Dockerfile

format: .venv/.dev ## Format, and apply automatic fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: .venv/.dev ## Resolve both lock files again (Linux and macOS, Python 3.11 to 3.13, hashes, no addresses)
	$(BIN)/uv pip compile $(LOCK) --extra postgres --group build -o requirements.lock
	$(BIN)/uv pip compile $(LOCK) --extra postgres --group build --group dev -c requirements.lock -o requirements-dev.lock
	$(BIN)/uv pip compile $(LOCK:pyproject.toml=$(CLIENTS).in) -o $(CLIENTS).lock
CLIENTS := ml_platform_tests/support/inference_clients
LOCK := pyproject.toml --quiet --upgrade --universal --python-version 3.11 --no-strip-extras --generate-hashes --no-header

docs: .venv/.dev ## Build the documentation to var/docs; warnings and broken links fail
	$(BIN)/zensical build --strict
	@echo "Open var/docs/index.html"

reference: .venv/.dev ## Generate docs/reference/ from the command line, the settings and the model specification
	$(BIN)/python -m ml_platform_tests.docs.reference

faults: .venv/.dev ## Every fault of docs/faults.md with its tests and their results
	$(BIN)/python -m ml_platform_tests.faults.report

soak: .venv/.dev ## Tests of many minutes, such as twenty kills of the stack (KILLS=20 SEED=0 ZONE=folder|s3)
	$(BIN)/pytest -m soak

bench-arrivals: .venv/.dev ## One tick of the arrival sensor with 100,000 files waiting, in a folder and in a bucket
	for kind in folder manifests bucket bucket-manifests; do \
		$(BIN)/python -W ignore benchmarks/arrivals/bench.py $(or $(FILES),100000) $$kind || exit 1; done

bench-loop: .venv/.dev ## CPU time of the main job, compared with a plain script of the same steps
	$(BIN)/python benchmarks/loop/bench.py

bench-serving: .venv/.dev ## Requests per second, compared with `mlflow models serve` and the same model file
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/serving/bench.py

bench-validation: .venv/.dev ## Parquet file to verdict, compared with Great Expectations and Polars by hand (ROWS=10_000_000)
	$(BIN)/python benchmarks/validation/bench.py --rows $(ROWS)
ROWS ?= 10_000_000

clean: ## Remove the environment and all state
	rm -rf .venv var .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
