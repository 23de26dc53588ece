# make report [PROFILE=demo] [DATA=/path/to/hw1_data] [OUT=…] [SEEDS=1] [SET="name=value …"]
#             [DEVICE=auto] [CLUSTER=local:3 | tcp://host:8786 | my-cluster.yaml]
# make plan [WORKERS=8] and the same variables
# make check    make test    make test-processors    make test-cluster
# make lab    make bench    make notebooks    make publish    make clean
#
# Every target except clean sets up .venv first if necessary. The current folder does not matter, and its path may
# contain spaces.

PROFILE ?= demo
DATA ?=
OUT ?=
SEEDS ?=
SET ?=
DEVICE ?= auto
CLUSTER ?=
WORKERS ?=

# make would silently ignore a misspelt variable such as profile=smoke or DATAROOT=…
known := PROFILE DATA OUT SEEDS SET DEVICE CLUSTER WORKERS PYTHON
given := $(foreach name,$(.VARIABLES),$(if $(findstring command line,$(origin $(name))),$(name)))
unknown := $(filter-out $(known) HW1_% MAKE% SHELL,$(given))
$(if $(strip $(unknown)),$(error The variable $(firstword $(unknown)) is not used. Known variables: $(known). \
	To set an environment variable, put it first: NAME=value make report))

here := $(shell dirname "$(strip $(MAKEFILE_LIST))")
python := "$(here)/.venv/bin/python"
options := --profile "$(PROFILE)" --device "$(DEVICE)" \
	$(if $(DATA),--data-root "$(DATA)") $(if $(OUT),--out "$(OUT)") \
	$(if $(SEEDS),--seeds "$(SEEDS)") $(if $(SET),--set $(SET))

.PHONY: report plan check test test-processors test-cluster lint lab bench notebooks publish setup setup-dev clean

report: setup
	@$(python) -m hw1lib report $(if $(CLUSTER),--cluster "$(CLUSTER)") $(options)

plan: setup
	@$(python) -m hw1lib plan $(if $(WORKERS),--workers "$(WORKERS)") $(options)

# Without nbval, which takes seconds to load in each of pytest's processes; the tests of the notebooks start it.
pytest := .venv/bin/python -m pytest -p no:nbval

# Lint and quick tests, at most 90 seconds.
check: setup-dev lint
	@cd "$(here)" && $(pytest) -m "not slow"

test: setup-dev lint
	@cd "$(here)" && $(pytest)

# Runs the tests on this processor and on each one that it can emulate, with one, two and four threads; takes hours.
test-processors: setup-dev
	@cd "$(here)" && .venv/bin/python -m tools.processors

# Runs a smoke report on a Slurm that is started on this machine; needs root and Debian's slurm-wlm and munge.
test-cluster: setup-dev
	@cd "$(here)" && .venv/bin/python -m tools.slurm

lint: setup-dev
	@cd "$(here)" && .venv/bin/ruff check --quiet hw1lib tests benchmarks tools notebooks
	@cd "$(here)" && .venv/bin/ruff format --check --quiet hw1lib tests benchmarks tools
	@cd "$(here)" && .venv/bin/ruff format --check --quiet --line-length 100 notebooks

lab: setup
	@cd "$(here)" && .venv/bin/jupyter lab --ServerApp.ip=localhost --notebook-dir=notebooks \
		$(if $(filter 0,$(shell id -u)),--allow-root)

# Prints the benchmark tables and writes them to report/build/bench; takes about an hour on an otherwise idle machine.
bench: setup-dev
	@cd "$(here)" && for part in networks pretraining segmentation frozen decoding growth augmentation; do \
		.venv/bin/python -m benchmarks.$$part || exit 1; done

# Runs the committed notebooks on the published demo (after make publish), and makes the smoke copies that nbval compares.
notebooks: setup-dev
	@cd "$(here)" && .venv/bin/python tests/notebooks/make.py

# Copies the demo's report into report/demo, which is committed, with the picture of a page for the README.
publish: setup
	@$(python) -m hw1lib publish --profile demo

setup:
	@"$(here)/setup.sh"

setup-dev:
	@"$(here)/setup.sh" dev

# Deletes all results; keeps data and .venv.
clean:
	rm -rf "$(here)/report/build"
