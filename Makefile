# The whole artifact from one place. `make` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SECONDEXPANSION:

PROFILE ?= quick
PYTHON ?= python3
WORKERS ?= 8
RATE ?= 200mbit
ifeq ($(filter quick full,$(PROFILE)),)
$(error PROFILE must be quick or full, got "$(PROFILE)")
endif

# mamba-ssm is built against the torch that is installed; triton is in requirements.lock at what torch pins on CUDA.
MAMBA_SSM := 2.3.1
TRITON := 3.7.1

BIN := .venv/bin
ENV := .venv/.installed
PIP := $(BIN)/python -m pip
INSTALL := $(PIP) install --constraint requirements.lock
ARTIFACT := $(BIN)/python -m artifact

SOURCES := $(wildcard artifact/*.py artifact/*/*.py artifact/*/*/*.py figures/*.py figures/*/*.py) data/registry.toml
NAMES := $(sort $(basename $(notdir $(wildcard notebooks/[0-9][0-9]_*.ipynb))))
RUNS := $(NAMES:%=results/$(PROFILE)/%.ipynb)
SCORECARD := results/$(PROFILE)/90_scorecard.ipynb
NBVAL := --nbval-lax --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout 600
STRIP := --keep-output --keep-count --extra-keys "metadata.papermill metadata.language_info \
  cell.metadata.papermill cell.metadata.execution"
PROCESSES := -n 2 --dist loadfile

# Sums in floating point depend on the number of threads; parallelism is between processes (see artifact.sweep).
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export NUMEXPR_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false
export PYTHONHASHSEED := 0
export PYDEVD_DISABLE_FILE_VALIDATION := 1

.PHONY: help env lab kick reproduce runs figures scorecard test nbval lint bench testbed docs clean reference refresh

help:  ## list the targets
	@echo "make TARGET [PROFILE=quick|full] [PYTHON=python3]"
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{ printf "  %-11s %s\n", $$1, $$2 }'

env: $(ENV)  ## create .venv from requirements.lock (every target that needs it does so)

lab: $(ENV)  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=. $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/00_start_here.ipynb

kick: results/$(PROFILE)/10_prefix_cache_idea.ipynb  ## one notebook end to end, under 2 minutes
	@echo "kick: done, the executed notebook is $<"

# Data sets are brought here first; the notebooks then take what is at hand, and none waits for a network.
reproduce: $(ENV)  ## data sets, every notebook, then the scorecard; resumes where it stopped, -j2 runs two at a time
	@$(ARTIFACT) data prepare
	@ARTIFACT_OFFLINE=1 $(MAKE) --no-print-directory PROFILE=$(PROFILE) runs
	@$(ARTIFACT) scorecard --profile $(PROFILE)
	@echo "executed notebooks and tables: results/$(PROFILE)/"

runs: $(RUNS)  ## every notebook, with the data sets that are at hand

figures: $(ENV)  ## draw every figure again from results/reference
	$(ARTIFACT) figures

# The committed results, or those of a profile that is asked for.
scorecard: $(ENV)  ## print the claims with their states (committed results, or PROFILE's if given)
	@$(ARTIFACT) scorecard --profile $(if $(filter file,$(origin PROFILE)),reference,$(PROFILE))

test: lint  ## ruff, mypy, import-linter, pytest, and the committed notebooks by nbval
	$(BIN)/pytest $(PROCESSES) $(NBVAL) tests $(NAMES:%=notebooks/%.ipynb)

nbval: $(ENV)  ## only the committed notebooks
	$(BIN)/pytest $(PROCESSES) $(NBVAL) $(NAMES:%=notebooks/%.ipynb)

lint: $(ENV)  ## ruff, mypy and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(ENV)  ## measure against peers, as ratios within one run
	@for script in $(sort $(wildcard benchmarks/[a-z]*.py)); do echo "== $$script"; $(BIN)/python $$script; done

testbed: $(ENV)  ## schemes on real links of limited rate, as root: sudo make testbed WORKERS=8 RATE=200mbit
	@$(ARTIFACT) sparse testbed --workers $(WORKERS) --rate $(RATE)

docs: $(ENV)  ## README, REPRODUCE, CLAIMS and the notebooks as a static site in site/
	rm -rf site && mkdir -p site/notebooks
	for page in README REPRODUCE CLAIMS; do \
	  $(BIN)/jupytext --quiet --from md --to ipynb --output site/$$page.ipynb $$page.md; \
	done
	mv site/README.ipynb site/index.ipynb
	$(BIN)/jupyter nbconvert --log-level WARN --to html site/*.ipynb
	$(BIN)/jupyter nbconvert --log-level WARN --to html --output-dir site/notebooks $(NAMES:%=notebooks/%.ipynb)
	rm site/*.ipynb
	for picture in figures/*/*.svg; do install -D -m 644 $$picture site/$$picture; done
	sed -i -e 's,href="README\.,href="index.,g' -e 's,\(href="[^":]*\)\.\(md\|ipynb\)\(["#]\),\1.html\3,g' \
	  site/*.html site/notebooks/*.html
	@echo "open site/index.html"

clean:  ## remove what was generated; never results/reference, figures or .venv
	rm -rf results/quick results/full site build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find $(wildcard artifact figures tests notebooks benchmarks) -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

reference:  ## run full and bring the committed tables, figures and CLAIMS.md up to date
	$(MAKE) PROFILE=full reproduce
	mkdir -p results/reference
	cp results/full/*.parquet results/reference/
	$(ARTIFACT) figures
	$(ARTIFACT) scorecard --write

refresh: $(NAMES:%=results/quick/%.ipynb)  ## put the executed quick notebooks back into notebooks/, metadata stripped
	for name in $(NAMES); do cp results/quick/$$name.ipynb notebooks/; done
	$(BIN)/nbstripout $(STRIP) $(NAMES:%=notebooks/%.ipynb)
	touch $(NAMES:%=results/quick/%.ipynb)

# One notebook: executed to a temporary name, renamed when it has ended well. A failure stops make with status 1.
results/$(PROFILE)/%.ipynb: notebooks/%.ipynb $(SOURCES) $(ENV) $$(if $$(filter full,$(PROFILE)),$$(wildcard notebooks/full/$$*.yaml))
	@$(ARTIFACT) run $* --profile $(PROFILE)

$(SCORECARD): claims.toml $(filter-out $(SCORECARD),$(RUNS))

$(ENV): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12" >&2; \
	  exit 1; }
	[ -x $(BIN)/pip ] || $(PYTHON) -m venv .venv
	$(INSTALL) --requirement requirements.lock
	build() { env MAMBA_FORCE_BUILD=TRUE "$$@" $(INSTALL) --no-build-isolation mamba-ssm==$(MAMBA_SSM); }; \
	if command -v nvcc >/dev/null && $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
	  build || { echo "mamba-ssm: its kernels did not build, going on with its reference functions" >&2; \
	             build MAMBA_SKIP_CUDA_BUILD=TRUE; }; \
	else build MAMBA_SKIP_CUDA_BUILD=TRUE; fi
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@
