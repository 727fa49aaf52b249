# `make train` and `make test` set up a fresh machine and run. `make help` lists all targets.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
DATA ?= emoji
METHOD ?= switch_kd
TRAINER ?= cpu
SWEEP ?= methods
RUN ?= runs/$(DATA)/$(METHOD)
PIPELINE ?= $(if $(wildcard conf/pipeline/$(DATA).yaml),$(DATA),train)
PY := $(VENV)/bin/python
CMD := $(PY) -m lightning_switchkd
unexport PYTHONDONTWRITEBYTECODE  # packages are compiled when they are first imported: most modules never are
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check --no-compile
KNOWN := PYTHON VENV DATA METHOD MODEL TRAINER OVERLAYS RUN ARGS TEACHER STUDENT IMAGES PIPELINE STAGES LAUNCH SWEEP METHODS SEEDS RUNS BENCHMARKS OUTPUT OMP_NUM_THREADS
$(if $(EXP)$(WITH)$(STUDY)$(RECIPE)$(RESUME),$(error Renamed in 0.2: EXP -> METHOD, WITH -> OVERLAYS, STUDY -> SWEEP, RECIPE -> RUN. RESUME is gone: runs resume by themselves))
$(if $(filter-out $(KNOWN:%=%=%) -%,$(subst \ ,_,$(MAKEOVERRIDES))),$(error Unknown variable in: $(MAKEOVERRIDES). Known: $(KNOWN)))  # a misspelled variable would train something else
comma := ,
list = "[$(subst $() ,$(comma),$(strip $(1)))]"
given = $(if $(filter command environment,$(firstword $(origin $(1)))),$(2)=$($(1)))
$(if $(TEACHER)$(STUDENT),$(if $(MODEL)$(LAUNCH)$(call given,STAGES,s)$(call given,PIPELINE,p),$(error MODEL, STAGES, PIPELINE and LAUNCH are of pipelines, not of TEACHER= STUDENT=. Use ARGS= or OVERLAYS=)))
RUN_PIPELINE = $(CMD) pipeline --pipeline conf/pipeline/$(PIPELINE).yaml $(call given,DATA,--variables.data) $(call given,TRAINER,--variables.trainer) \
  --variables.method=$(METHOD) $(call given,MODEL,--variables.model) $(call given,RUN,--variables.run) --variables.overlays="$(OVERLAYS)" \
  $(call given,LAUNCH,--launcher)
TRAINING = $(if $(TEACHER)$(STUDENT),$(CMD) distill --teacher=$(TEACHER) --student=$(STUDENT) --data='$(DATA)' $(call given,IMAGES,--images) --method=$(METHOD) \
  $(call given,TRAINER,--trainer) $(call given,RUN,--output) --overlays="$(OVERLAYS)" --flags,$(RUN_PIPELINE) $(if $(STAGES),--stages $(call list,$(STAGES))) --variables.flags)

help: ## list the targets, and the names of configurations
	@grep -hE '^[a-z -]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 20 | sed 's/^/  /'
	@for kind in method data model trainer overlay pipeline sweep; do echo "  $$kind: $$(ls conf/$$kind | sed 's/\.yaml//' | tr '\n' ' ')"; done; echo "  benchmarks: $$(sed -n 's/^\([^ #]*\):$$/\1/p' conf/benchmarks.yaml | tr '\n' ' ')"
setup: $(VENV)/requirements.ready ## create .venv and install the locked packages
$(VENV)/requirements-dev.ready: requirements.txt
$(VENV)/%.ready: %.txt
	test -e $(PY) || { $(PYTHON) -m venv $(VENV) && $(INSTALL) --upgrade pip; }  # an old pip takes twice as long
	@echo "Installing the packages of $< into $(VENV). On a new machine this takes some minutes."
	$(INSTALL) -r $<
	@touch $@
train: setup ## distill a student and compare it with fine-tuning: DATA= METHOD= MODEL= TRAINER= OVERLAYS= RUN= ARGS="--key=value …", or your own TEACHER= STUDENT= DATA=FILE IMAGES=FOLDER
	$(TRAINING)='$(ARGS)'
teacher: setup ## train the teacher and the initial student of the demo, instead of using the prepared ones
	$(RUN_PIPELINE) --stages "[teacher,student_init]" --train_prepared=true
pipeline: train ## run other stages: PIPELINE=full_size MODEL=qwen2.5-0.5b-siglip TRAINER=ddp STAGES="pretrain distil"
dry-run fill-cache validate-data: STAGES ?= distilled
dry-run fill-cache: setup ## run this command with the settings of a training
	$(TRAINING)='$(ARGS)' --command $@
validate-data: setup ## check every sample: reports/data/DATA/report.md and a list of samples to exclude
	$(TRAINING)='--output=reports/data/$(basename $(notdir $(subst *,,$(DATA)))) $(ARGS)' --command $@

evaluate: setup ## evaluate the models of a run: RUN=folder BENCHMARKS="gqa pope"
	$(CMD) evaluate --run $(RUN) $(if $(BENCHMARKS),--benchmarks $(call list,$(BENCHMARKS))) --no_image --output $(or $(OUTPUT),$(RUN)/report) $(ARGS)
compare: setup ## compare evaluated runs, the last one with the first: RUNS="runs/emoji/dbild runs/emoji/switch_kd"
	$(CMD) report $(join $(patsubst %,--systems.%=,$(notdir $(RUNS:%/=%))),$(patsubst %,%/report/student,$(RUNS:%/=%))) --baseline=$(notdir $(firstword $(RUNS:%/=%))) --output $(or $(OUTPUT),reports/compare)
sweep: setup ## compare methods over seeds: SWEEP=name of conf/sweep, METHODS="sft switch_kd" SEEDS="0 1" DATA=emoji
	$(CMD) sweep --sweep conf/sweep/$(SWEEP).yaml $(call given,DATA,--variables.data) $(if $(METHODS),--methods $(call list,$(METHODS))) \
	  $(if $(SEEDS),--seeds $(call list,$(SEEDS))) --flags='$(ARGS)'

test: $(VENV)/requirements-dev.ready ## run the tests that CI runs
	$(PY) -m pytest -n auto --dist worksteal
test-all: $(VENV)/requirements-dev.ready harness train ## run all tests, including slow ones and the notebooks on the run of `make train`
	$(PY) -m pytest -n auto --dist worksteal -m ""
harness: .venv-lmms/ready ## create .venv-lmms with lmms-eval, to evaluate an exported student with another harness
.venv-lmms/ready: docs/how-to/lmms_eval/requirements.txt
	$(PYTHON) -m venv --clear .venv-lmms
	.venv-lmms/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	.venv-lmms/bin/python -m pip uninstall --quiet -y torchvision  # unused, and often built for another torch
	@touch $@
lint: $(VENV)/requirements-dev.ready ## check style, types, layers and spelling
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy && $(VENV)/bin/lint-imports --no-logo && $(VENV)/bin/codespell
lab: setup ## open the notebooks in Jupyter: RUN=runs/emoji/switch_kd
	$(INSTALL) jupyterlab==4.6.6 ipywidgets==8.1.9
	RUN=$(RUN) PYTHONPATH=$(CURDIR) $(VENV)/bin/jupyter lab notebooks
gallery: $(VENV)/requirements-dev.ready ## run the notebooks, and save their figures in docs/gallery: RUN=runs/emoji/switch_kd
	$(PY) notebooks/run.py --run $(RUN) --figures docs/gallery
tensorboard: setup ## show all runs in TensorBoard
	$(VENV)/bin/tensorboard --logdir runs
clean: ## remove runs, reports and demo data (not .venv)
	rm -rf runs reports datasets
ablation recipe:
	@$(error '$@' was renamed in 0.2: use 'make $(if $(filter ablation,$@),sweep,pipeline)')
.PHONY: help setup train teacher pipeline dry-run fill-cache validate-data evaluate compare sweep test test-all harness lint lab gallery tensorboard clean ablation recipe
