# `make` or `make help` lists the targets. Every target sets up what it needs first: conf/dev/.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:

VENV := .venv
PY := $(VENV)/bin/python

# Spark's workers must run the interpreter that the driver runs, which has numpy.
export PYSPARK_PYTHON := $(CURDIR)/$(PY)
export PYTHON

# What `make test` leaves out; `make test MARKERS=chaos` runs just that.
SLOW := lifecycle or evaluation or realdata or chaos or cluster or kafka or readers or storage or airflow
MARKERS = not ($(SLOW))
DATA ?=
SIZE ?=
ARGS ?=
KILLS ?= 30
SEED ?=

.PHONY: help setup setup-bench setup-outside demo test test-lifecycle test-data test-evaluation evaluate chaos cluster-test kafka storage readers airflow notebooks check audit format lock bench bench-kernel bench-top-n bench-stream package clean distclean

help: ## List the targets (this text)
	@echo "foldin: a recommender as fresh as its last event. It needs Python >= 3.11 and Java 17 or 21."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "Packages are kept in \$$FOLDIN_CACHE (default ~/.cache/foldin); PYTHON=... names another Python."

setup: ## Make .venv with the locked packages, if it is not there yet
	@python=$$(conf/dev/find-python) && "$$python" -I conf/dev/environment.py

setup-bench:
	@python=$$(conf/dev/find-python) && "$$python" -I conf/dev/environment.py --with conf/dev/bench.lock

setup-outside:
	@python=$$(conf/dev/find-python) && "$$python" -I conf/dev/environment.py --with conf/dev/outside.lock

demo: setup ## Run the whole loop on generated events (SIZE=...) or real ones (DATA=folder); ARGS=...
	@$(PY) -m foldin demo $(if $(DATA),--data "$(DATA)") $(if $(SIZE),--size "$(SIZE)") $(ARGS)

test: setup ## Run the tests but the slow kinds; MARKERS=chaos (cluster, kafka, ...) runs one; ARGS=...
	@$(PY) -m pytest -m "$(MARKERS)" $(ARGS)

test-lifecycle: setup ## Run the tests of a model's life: judged, searched, adopted, rolled back, and of upkeep
	@$(PY) -m pytest -m "lifecycle and not chaos" $(ARGS)

test-data: setup ## Run the tests on the real event logs (FOLDIN_DATA, default ../shared/data)
	@$(PY) -m pytest -m realdata $(ARGS)

test-evaluation: setup ## Run the tests of the evaluation that train models
	@$(PY) -m pytest -m evaluation $(ARGS)

evaluate: setup ## Replay a generated log (SIZE=...) or a real one (DATA=folder), write report/; ARGS="--help"
	@$(PY) jobs/evaluate.py $(if $(DATA),--data "$(DATA)",--generated "$(or $(SIZE),small)") $(ARGS)

chaos: setup ## Kill running jobs at random and on purpose, damage their files (KILLS=8 for the quick half, SEED=...)
	@KILLS="$(KILLS)" SEED="$(SEED)" $(PY) -m pytest -p no:hypothesispytest -m chaos tests/chaos tests/test_fuzz_ingest.py $(ARGS)

cluster-test: package ## Submit every job to a standalone cluster of three processes, and lose its machines
	@$(PY) -m pytest -p no:hypothesispytest -m cluster tests/cluster $(ARGS)

kafka: setup ## Read from a real Kafka broker that is killed and started again (Ivy fetches it once, 100 MB)
	@$(PY) -m pytest -p no:hypothesispytest -m kafka tests/kafka $(ARGS)

storage: setup-outside ## Keep tables in a catalog, and on an S3 server of this machine (Ivy fetches its JARs once)
	@$(PY) -m pytest -p no:hypothesispytest -m storage tests/storage $(ARGS)

airflow: setup ## Run nights in a real Airflow (an environment of its own, .venv-airflow) and by the cron script
	@python=$$(conf/dev/find-python) && "$$python" -I conf/dev/environment.py --apart airflow
	@$(PY) -m pytest -p no:hypothesispytest --timeout 900 -m airflow tests/orchestration $(ARGS)

readers: setup-outside ## Read the tables without Spark, and push lists to a real Redis
	@$(PY) -m pytest -p no:hypothesispytest -m readers tests/readers $(ARGS)

# A JVM that lives for a minute or two gains nothing from its second, costly compiler.
notebooks: setup ## Execute the notebooks from a clean kernel (ARGS=--overwrite stores what they show)
	@JUPYTER_PREFER_ENV_PATH=1 IPYTHONDIR=$(CURDIR)/build/ipython JDK_JAVA_OPTIONS=-XX:TieredStopAtLevel=1 \
		$(PY) -m pytest -p no:hypothesispytest --timeout 900 --nbmake --nbmake-timeout 600 notebooks tests/test_notebooks.py $(ARGS)

check: setup ## Lint, check format and types, compare the locks with pyproject.toml
	@$(PY) -m ruff check --quiet --output-format concise lib jobs tests notebooks conf/dev conf/orchestration
	@$(PY) -m ruff format --check --output-format concise lib jobs tests notebooks conf/dev conf/orchestration
	@$(PY) -m mypy --strict lib
	@$(PY) conf/dev/check_locks.py

audit: ## Ask pip-audit about every lock; without its data, check pins and hashes (ARGS="--ignore-vuln ID")
	@python=$$(conf/dev/find-python) && "$$python" conf/dev/audit.py $(ARGS)

format: setup ## Format the code and mend what ruff can mend
	@$(PY) -m ruff check --fix lib jobs tests notebooks conf/dev conf/orchestration
	@$(PY) -m ruff format lib jobs tests notebooks conf/dev conf/orchestration

lock: ## Remake the locks in conf/dev from pyproject.toml (needs the network; UPGRADE=1 for newer ones)
	@python=$$(conf/dev/find-python) && PYTHON="$$python" UPGRADE="$(UPGRADE)" conf/dev/remake-locks

bench: bench-kernel bench-top-n bench-stream ## Time foldin against its peers (installs conf/dev/bench.lock)

bench-kernel: setup-bench ## Time the fold-in kernel against its peers
	@$(PY) tests/benchmarks/bench_kernel.py $(ARGS)

bench-top-n: setup ## Time top-10 for all users against MLlib's own
	@$(PY) tests/benchmarks/bench_top_n.py $(ARGS)

bench-stream: setup ## Time the stream: micro-batches, rates, freshness, soak (hours; ARGS="--only batch --sizes 50000")
	@$(PY) tests/benchmarks/bench_stream.py $(ARGS)

package: setup ## Build what a cluster is given into dist/: wheel, environment archive, JAR coordinates, job scripts
	@$(PY) conf/dev/package.py

clean: ## Remove what builds, tests and runs leave behind, but neither .venv nor data
	@rm -rf build dist spark-warehouse notebooks/spark-warehouse metastore_db derby.log .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name .venv -prune -o -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove .venv too; the cache of packages stays, so that the next set-up is quick
	@rm -rf $(VENV) .venv-*
