# `make train` and `make test` do everything on a fresh machine; `make help` lists the rest.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
EXP ?= switch_kd
DATA ?= digits
MODEL ?= $(DATA)
TRAINER ?= cpu
RUN ?= runs/$(DATA)/$(EXP)
ARGS ?=

PY := .venv/bin/python
CMD := $(PY) -m lightning_switchkd
COMMON = --config conf/base.yaml --config conf/data/$(DATA).yaml
WHERE = --config conf/trainer/$(TRAINER).yaml

# The embedded models are tiny: a second thread gains little, and costs much where another process wants the core.
ifeq ($(MODEL),digits)
export OMP_NUM_THREADS ?= 1
endif

.PHONY: help setup data teacher train study test test-all lint tensorboard clean

help: ## this list
	@echo "make train [EXP=…] [DATA=…] [MODEL=…] [TRAINER=…] [RUN=folder] [ARGS=\"--trainer.max_steps=50 …\"]"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14 | sed 's/^/  /'
	@echo
	@for kind in experiment data model trainer; do \
	  echo "  $$kind: $$(ls conf/$$kind | sed 's/\.yaml//' | tr '\n' ' ')"; done

# -- set-up: .venv is made again when a requirements file changes ------------------------------------------------------

setup: .venv/ready ## make .venv and install the pinned packages
.venv/ready: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

# -- the embedded data, and what the recipe takes as given; what exists is not made again ----------------------------

DIGITS := datasets/digits
PREPARED_digits := runs/digits/teacher/student/config.json runs/digits/start/student/config.json
STAGE = $(CMD) fit --config conf/base.yaml --config conf/data/digits.yaml $(WHERE) --config conf/prepare

data: $(DIGITS)/manifest.json ## write the embedded data set: boards of real handwritten digits, as LLaVA JSON + PNG
$(DIGITS)/manifest.json: | .venv/ready
	$(PY) -m lightning_switchkd.data.demo.digits --output $(DIGITS)

teacher: runs/digits/teacher/student/config.json ## train the vision tower and the teacher of the embedded recipe
runs/digits/tower/student/config.json: | $(DIGITS)/manifest.json
	$(STAGE)/digits-tower.yaml --trainer.default_root_dir=runs/digits/tower
runs/digits/teacher/student/config.json: | runs/digits/tower/student/config.json
	$(STAGE)/digits-teacher.yaml --trainer.default_root_dir=runs/digits/teacher
runs/digits/start/student/config.json: | runs/digits/tower/student/config.json
	$(STAGE)/digits-start.yaml --trainer.default_root_dir=runs/digits/start

# -- the main job ------------------------------------------------------------------------------------------------------

train: .venv/ready | $(PREPARED_$(MODEL)) ## distil the student, then compare teacher, student before and after
	$(CMD) fit $(COMMON) --config conf/model/$(MODEL).yaml $(WHERE) --config conf/experiment/$(EXP).yaml \
	  --trainer.default_root_dir=$(RUN) $(ARGS)
ifeq ($(DATA),digits)
	$(CMD) evaluate --annotations $(DIGITS)/test.json --image_root $(DIGITS)/images --run $(RUN) --output $(RUN)/report \
	  --models.teacher=runs/digits/teacher/student --models.start=runs/digits/start/student \
	  --models.student=$(RUN)/student
endif

# -- a comparison from one start: runs that are finished are kept ------------------------------------------------------

METHODS ?= sft switch_kd
SEEDS ?= 0 1 2
STUDY := runs/digits/study
STUDY_RUNS = $(foreach method,$(METHODS),$(foreach seed,$(SEEDS),$(method)/$(seed)))

study: $(STUDY_RUNS:%=$(STUDY)/%/student/config.json) ## compare METHODS over SEEDS on the embedded data: table with spread
	$(CMD) evaluate --annotations $(DIGITS)/test.json --image_root $(DIGITS)/images --output reports/digits \
	  --models.teacher=runs/digits/teacher/student --models.start=runs/digits/start/student \
	  $(foreach run,$(STUDY_RUNS),--models.$(run)=$(STUDY)/$(run)/student)
$(STUDY)/%/student/config.json: | $(PREPARED_digits)
	$(CMD) fit --config conf/base.yaml --config conf/data/digits.yaml --config conf/model/digits.yaml $(WHERE) \
	  --config conf/experiment/$(*D).yaml --seed_everything=$(*F) --trainer.default_root_dir=$(STUDY)/$* $(ARGS)

test: .venv/ready ## the tests that CI runs
	$(PY) -m pytest

test-all: .venv/ready ## every test, long ones included
	$(PY) -m pytest -m ""

lint: .venv/ready ## ruff and mypy
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy

tensorboard: .venv/ready ## look at all runs
	.venv/bin/tensorboard --logdir runs

clean: ## remove runs, reports and the embedded data (not .venv)
	rm -rf runs reports datasets
