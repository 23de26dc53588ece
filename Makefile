# make report [PROFILE=demo] [DATA=/path/to/hw1_data] [OUT=…] [SEEDS=1] [SET="name=value …"]
#             [DEVICE=auto]
# make test     make lab     make bench     make notebooks     make publish     make clean
#
# Every target sets up .venv first, if need be. Works from any folder and in one with spaces.

PROFILE ?= demo
DATA ?=
OUT ?=
SEEDS ?=
SET ?=
DEVICE ?= auto

here := $(shell dirname "$(strip $(MAKEFILE_LIST))")
python := "$(here)/.venv/bin/python"
options := --profile "$(PROFILE)" --device "$(DEVICE)" \
	$(if $(DATA),--data-root "$(DATA)") $(if $(OUT),--out "$(OUT)") \
	$(if $(SEEDS),--seeds "$(SEEDS)") $(if $(SET),--set $(SET))

.PHONY: report plan test lab bench notebooks publish setup setup-dev clean

report: setup
	@$(python) -m hw1lib report $(options)

plan: setup
	@$(python) -m hw1lib plan $(options)

test: setup-dev
	@cd "$(here)" && .venv/bin/python -m pytest

lab: setup
	@cd "$(here)" && .venv/bin/jupyter lab --ServerApp.ip=localhost --notebook-dir=notebooks \
		$(if $(filter 0,$(shell id -u)),--allow-root)

# Prints the benchmark tables, in about half an hour. Nothing else should run meanwhile.
bench: setup
	@cd "$(here)" && .venv/bin/python tests/benchmarks/augmentation.py
	@cd "$(here)" && .venv/bin/python tests/benchmarks/losses.py

# Runs the committed notebooks in place, with the smoke profile, so that they show its outputs.
notebooks: setup
	@cd "$(here)" && HW1_HEADLESS=1 .venv/bin/jupyter nbconvert --to notebook --execute --inplace \
		--log-level=WARN --ExecutePreprocessor.record_timing=False notebooks/*.ipynb

# Copies the demo report into report/demo, as it is committed.
publish: setup
	@$(python) -m hw1lib publish --profile demo

setup:
	@"$(here)/setup.sh"

setup-dev:
	@"$(here)/setup.sh" dev

# Removes results; data and .venv stay.
clean:
	rm -rf "$(here)/report/build"
