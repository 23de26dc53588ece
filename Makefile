# make report [PROFILE=demo] [DATA=/path/to/hw1_data] [OUT=…] [SEEDS=1] [SET="name=value …"]
#             [DEVICE=auto] [CLUSTER=local:3 | tcp://host:8786 | my-cluster.yaml]
# make plan [WORKERS=8] and the same
# make check    make test    make test-processors    make test-cluster
# make lab    make bench    make notebooks    make publish    make clean
#
# Every target sets up .venv first, if need be. Works from any folder and in one with spaces.

PROFILE ?= demo
DATA ?=
OUT ?=
SEEDS ?=
SET ?=
DEVICE ?= auto
CLUSTER ?=
WORKERS ?=

# A variable that nothing reads, such as profile=smoke or DATAROOT=…, would be ignored silently.
known := PROFILE DATA OUT SEEDS SET DEVICE CLUSTER WORKERS PYTHON
given := $(foreach name,$(.VARIABLES),$(if $(findstring command line,$(origin $(name))),$(name)))
unknown := $(filter-out $(known) HW1_% MAKE% SHELL,$(given))
$(if $(strip $(unknown)),$(error The variable $(firstword $(unknown)) is not used. There are: $(known). \
	Variables of the environment go first: NAME=value make report))

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

# The quick lane for work: lint and unit tests, at most 90 seconds.
check: setup-dev lint
	@cd "$(here)" && .venv/bin/python -m pytest -m "not slow"

test: setup-dev lint
	@cd "$(here)" && .venv/bin/python -m pytest

# The tests on this processor and on each that it can emulate, with one, two and four threads: hours.
test-processors: setup-dev
	@cd "$(here)" && .venv/bin/python -m tools.processors

# A smoke report on Slurm, which is started on this machine: as root, with Debian's slurm-wlm and munge.
test-cluster: setup-dev
	@cd "$(here)" && .venv/bin/python -m tools.slurm

lint: setup-dev
	@cd "$(here)" && .venv/bin/ruff check --quiet hw1lib tests benchmarks tools notebooks
	@cd "$(here)" && .venv/bin/ruff format --check --quiet hw1lib tests benchmarks tools
	@cd "$(here)" && .venv/bin/ruff format --check --quiet --line-length 100 notebooks

lab: setup
	@cd "$(here)" && .venv/bin/jupyter lab --ServerApp.ip=localhost --notebook-dir=notebooks \
		$(if $(filter 0,$(shell id -u)),--allow-root)

# Prints the benchmark tables, in about an hour, and writes them to report/build/bench. Nothing else should run meanwhile.
bench: setup-dev
	@cd "$(here)" && for part in networks pretraining segmentation frozen decoding growth augmentation; do \
		.venv/bin/python -m benchmarks.$$part || exit 1; done

# Runs the committed notebooks on the published demo (make publish first), and the smoke copies that nbval compares.
notebooks: setup-dev
	@cd "$(here)" && .venv/bin/python tests/notebooks/make.py

# Copies the demo report into report/demo, as it is committed, with the picture of a page that README shows.
publish: setup
	@$(python) -m hw1lib publish --profile demo

setup:
	@"$(here)/setup.sh"

setup-dev:
	@"$(here)/setup.sh" dev

# Removes results; data and .venv stay.
clean:
	rm -rf "$(here)/report/build"
