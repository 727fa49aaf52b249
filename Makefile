# `make train` and `make test` set up a fresh machine and run. `make help` lists all targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
METHOD ?= switch_kd
DATA ?= digits
MODEL ?= $(DATA)
TRAINER ?= cpu
RUN ?= runs/$(DATA)/$(METHOD)
OVERLAYS ?=
RESUME ?=
STAGE ?= distil
PIPELINE_DIR ?= runs/$(MODEL)
LAUNCH ?=
ARGS ?=

PY := .venv/bin/python
CMD := $(PY) -m lightning_switchkd
COMMON = --config conf/base.yaml --config conf/data/$(DATA).yaml
WHERE = --config conf/trainer/$(TRAINER).yaml
RESUMING = $(if $(RESUME),--ckpt_path=$(if $(filter auto,$(RESUME)),last,$(RESUME)))
DISTIL = $(CMD) fit $(COMMON) --config conf/model/$(MODEL).yaml $(WHERE) --config conf/method/$(1).yaml \
  $(OVERLAYS:%=--config conf/overlay/%.yaml)

# Variables of version 0.1.0
renamed = $(if $(filter-out undefined,$(origin $(1))),$(error $(1) was renamed in 0.2: use $(2)))
$(call renamed,EXP,METHOD)$(call renamed,WITH,OVERLAYS)$(call renamed,STUDY,SWEEP)$(call renamed,RECIPE,PIPELINE_DIR)

# A misspelled variable would train something else.
VARIABLES := METHOD DATA MODEL TRAINER RUN OVERLAYS RESUME STAGE STAGES PIPELINE_DIR LAUNCH ARGS BENCHMARKS OUTPUT SWEEP METHODS \
  SEEDS QUICK RUNS PYTHON OMP_NUM_THREADS
given := $(foreach word,$(MAKEOVERRIDES),$(if $(findstring =,$(word)),$(if $(filter -%,$(word)),,$(firstword $(subst =, ,$(word))))))
$(if $(filter-out $(VARIABLES),$(given)),$(error Unknown variable $(filter-out $(VARIABLES),$(given)). Known: $(VARIABLES)))

empty :=
comma := ,
listed = [$(subst $(empty) ,$(comma),$(strip $(1)))]

# An unknown name stops make before it builds anything.
named = $(foreach name,$(if $(filter-out file undefined,$(origin $(1))),$(filter-out $(3),$($(1)))),$(if $(wildcard conf/$(2)/$(name).yaml),,\
  $(error $(1)=$(name): conf/$(2)/$(name).yaml does not exist. Available: $(sort $(basename $(notdir $(wildcard conf/$(2)/*.yaml)))))))
$(foreach kind,METHOD/method DATA/data MODEL/model TRAINER/trainer OVERLAYS/overlay STAGE/stage STAGES/stage SWEEP/sweep,\
  $(call named,$(patsubst %/,%,$(dir $(kind))),$(notdir $(kind))))
$(call named,BENCHMARKS,benchmark,test present %.yaml %.yml %.json %.jsonl %.parquet %.tar)

DEMO := digits easy_vqa emoji emoji_quick
DEMO_DATA := $(filter $(DATA),$(DEMO))

# The demo models are tiny. A second thread gains little, and slows down other processes on the same core.
ifneq ($(filter $(MODEL),$(DEMO)),)
export OMP_NUM_THREADS ?= 1
endif

.PHONY: help ablation recipe setup data teacher train evaluate compare pipeline dry-run fill-cache validate-data sweep prepared test test-all harness lint lab gallery tensorboard clean

help: ## list the targets, and the names of configurations
	@echo "make train [METHOD=…] [DATA=…] [MODEL=…] [TRAINER=…] [OVERLAYS=\"… …\"] [RUN=folder] [RESUME=auto] [ARGS=\"--trainer.max_steps=50 …\"]"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15 | sed 's/^/  /'
	@echo
	@for kind in method data model trainer overlay stage sweep benchmark; do \
	  echo "  $$kind: $$(ls conf/$$kind | sed 's/\.yaml//' | tr '\n' ' ')"; done

# -- setup: .venv is rebuilt when a requirements file changes ----------------------------------------------------------

setup: .venv/ready ## create .venv and install the pinned packages
.venv/ready: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

# -- demo data and demo models: existing ones are kept -----------------------------------------------------------------

student = runs/$(1)/$(2)/student/config.json
PREPARED = $(foreach name,$(sort $(filter $(DATA) $(MODEL),$(DEMO))),$(foreach stage,teacher student_init,\
  $(call student,$(name),$(stage))))
prepare = $(CMD) fit --config conf/base.yaml --config conf/data/$(1).yaml $(WHERE) \
  $(patsubst %,--config conf/stage/%-$(2).yaml,$(sort $(1:_quick=) $(1))) \
  --trainer.default_root_dir=runs/$(1)/$(2)$(3) $(if $(RESUME),--ckpt_path=last)

DRAWN_emoji_quick := --scenes 4000 --small-scenes 800 --val-scenes 40 --test-scenes 200

data: $(DEMO_DATA:%=datasets/%/manifest.json) ## write a demo data set as LLaVA JSON and PNG: DATA=digits, easy_vqa or emoji
$(DEMO:%=datasets/%/manifest.json): datasets/%/manifest.json: | .venv/ready
	$(PY) -m lightning_switchkd.demo.$(*:_quick=) --output datasets/$* $(DRAWN_$*)

teacher: $(DEMO_DATA:%=$(call student,%,teacher)) ## train the vision encoder and the teacher of the demo
$(DEMO:%=$(call student,%,vision_encoder)): $(call student,%,vision_encoder): | datasets/%/manifest.json
	$(call prepare,$*,vision_encoder)
# $(call stage,data sets,stage,previous stage)
define stage
$(1:%=$(call student,%,$(2))): $(call student,%,$(2)): | $(call student,%,$(3))
	$$(call prepare,$$*,$(2))
endef
$(eval $(call stage,$(DEMO),teacher,vision_encoder))
$(eval $(call stage,digits easy_vqa,student_init,vision_encoder))
$(eval $(call stage,emoji emoji_quick,pretrained,vision_encoder))
$(eval $(call stage,emoji emoji_quick,student_init,pretrained))
$(eval $(call stage,emoji,pretrained_small,vision_encoder))
$(eval $(call stage,emoji,student_init_small,pretrained_small))
$(eval $(call stage,emoji,pretrained_large,vision_encoder))
$(eval $(call stage,emoji,student_init_large,pretrained_large))
$(eval $(call stage,emoji,pretrained_teacher_large,vision_encoder))
$(eval $(call stage,emoji,teacher_large,pretrained_teacher_large))
# initial students of a seed
.PRECIOUS: $(call student,emoji,pretrained.%) $(call student,emoji,student_init.%)
$(call student,emoji,pretrained.%): | $(call student,emoji,vision_encoder)
	$(call prepare,emoji,pretrained,.$*) --seed_everything=$*
$(call student,emoji,student_init.%): | $(call student,emoji,pretrained.%)
	$(call prepare,emoji,student_init,.$*) --seed_everything=$* --model.student.checkpoint=runs/emoji/pretrained.$*/student
STAGES_student_init_seeds = $(patsubst %,student_init.%,$(or $(SEEDS),1 2 3))
STAGES_student_sizes := student_init_small student_init_large
STAGES_teacher_sizes = $(STAGES_student_init_seeds) teacher_large

# the test samples of the data, for the run's teacher, its student before and after, with images and without
BENCHMARKS ?= test
OUTPUT ?= $(RUN)/report
EVALUATE = $(CMD) evaluate --run $(RUN) --benchmarks "$(call listed,$(BENCHMARKS))" --no_image --batch_size 128 --output $(OUTPUT)

# -- training ----------------------------------------------------------------------------------------------------------

train: .venv/ready | $(PREPARED) ## distill the student, then compare teacher, student (before) and student (after)
	$(call DISTIL,$(METHOD)) --trainer.default_root_dir=$(RUN) $(RESUMING) $(ARGS)
ifneq ($(DEMO_DATA),)
	$(EVALUATE)
endif

evaluate: .venv/ready | $(PREPARED) ## evaluate teacher, student (before) and student (after): RUN=folder BENCHMARKS="test datasets/emoji/test_glyphs.json"
	$(EVALUATE) $(ARGS)

compare: OUTPUT = reports/compare
compare: .venv/ready ## compare evaluated runs: RUNS="runs/digits/switch_kd runs/digits/dbild"
	$(CMD) report $(foreach run,$(or $(RUNS:%/=%),$(error Name the runs to compare: RUNS="folder folder")),\
	  --systems.$(notdir $(run))=$(run)/report/student) --output $(OUTPUT)

# Full-size training. Each stage starts from the student of the previous stage. Finished stages are skipped, interrupted
# stages are resumed.
STAGES ?= pretrain distil
pipeline: .venv/ready ## run the stages of a full-size training: MODEL=qwen2.5-0.5b-siglip DATA=llava TRAINER=ddp STAGES="pretrain distil"
	@from=""; for stage in $(STAGES); do \
	  if [ ! -f $(PIPELINE_DIR)/$$stage/student/config.json ]; then \
	    (set -x; $(LAUNCH) $(CMD) fit $(COMMON) --config conf/model/$(MODEL).yaml $(WHERE) --config conf/stage/$$stage.yaml \
	      $(OVERLAYS:%=--config conf/overlay/%.yaml) $$from --trainer.default_root_dir=$(PIPELINE_DIR)/$$stage --ckpt_path=last $(ARGS)); \
	  fi; \
	  from="--model.student.checkpoint=$(PIPELINE_DIR)/$$stage/student --model.student.vision=null --model.student.lm=null"; \
	done

dry-run: .venv/ready ## estimate time and memory of a full-size stage, without a download: MODEL=qwen2.5-0.5b-siglip TRAINER=ddp STAGE=distil
	$(CMD) dry-run $(COMMON) --config conf/model/$(MODEL).yaml $(WHERE) --config conf/stage/$(STAGE).yaml $(ARGS)

validate-data: .venv/ready | $(DEMO_DATA:%=datasets/%/manifest.json) ## check every sample: reports/data/DATA/report.md and a list of samples to exclude
	$(CMD) validate-data $(COMMON) --config conf/model/$(MODEL).yaml $(WHERE) --config conf/method/$(METHOD).yaml \
	  $(OVERLAYS:%=--config conf/overlay/%.yaml) --output reports/data/$(DATA) $(ARGS)

fill-cache: .venv/ready | $(PREPARED) ## compute the teacher's hidden states of all samples once, for later runs: OVERLAYS=teacher_cache
	$(CMD) fill-cache $(COMMON) --config conf/model/$(MODEL).yaml $(WHERE) --config conf/method/$(METHOD).yaml \
	  $(OVERLAYS:%=--config conf/overlay/%.yaml) $(ARGS)

# -- comparisons: finished runs are kept -------------------------------------------------------------------------------

SWEEP ?= methods
METHODS ?=
SEEDS ?= $(if $(QUICK),0 1)
$(if $(STAGES_$(SWEEP)),$(if $(QUICK)$(filter-out emoji,$(if $(filter-out file,$(origin DATA)),$(DATA))),\
  $(error SWEEP=$(SWEEP) needs stages that only DATA=emoji has: $(STAGES_$(SWEEP)). Remove QUICK= and DATA=)))
sweep: DATA := $(if $(filter file,$(origin DATA)),emoji,$(DATA))$(if $(QUICK),_quick)
sweep: .venv/ready ## compare methods over seeds: SWEEP=name of conf/sweep, METHODS="sft switch_kd" SEEDS="0 1" QUICK=1 DATA=emoji
	@$(MAKE) --no-print-directory prepared DATA=$(DATA)
	$(CMD) sweep --sweep conf/sweep/$(SWEEP).yaml --data $(DATA) $(if $(METHODS),--methods "$(call listed,$(METHODS))") \
	  $(if $(SEEDS),--seeds "$(call listed,$(SEEDS))") $(if $(ARGS),--flags "$(ARGS)")
prepared: | $(PREPARED) $(foreach stage,$(STAGES_$(SWEEP)),$(call student,$(DATA),$(stage)))

test: .venv/ready ## run the tests that CI runs
	$(PY) -m pytest -n auto --dist worksteal

test-all: .venv/ready harness runs/digits/switch_kd/report/results.json ## run all tests, including slow ones and the notebooks on a run of `make train`
	$(PY) -m pytest -n auto --dist worksteal -m ""
runs/digits/switch_kd/report/results.json:
	$(MAKE) train

harness: .venv-lmms/ready ## create .venv-lmms with lmms-eval, to evaluate an exported student with another harness
.venv-lmms/ready: conf/lmms_eval/requirements.txt
	$(PYTHON) -m venv --clear .venv-lmms
	.venv-lmms/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	.venv-lmms/bin/python -m pip uninstall --quiet -y torchvision  # unused, and often built for another torch
	@touch $@

lint: .venv/ready ## check style, types, layers and spelling
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy && .venv/bin/lint-imports --no-logo && .venv/bin/codespell

lab: .venv/lab-ready ## open the notebooks in Jupyter: RUN=runs/digits/switch_kd
	RUN=$(RUN) PYTHONPATH=$(CURDIR) .venv/bin/jupyter lab notebooks
.venv/lab-ready: .venv/ready
	$(PY) -m pip install --quiet --disable-pip-version-check jupyterlab==4.6.6 ipywidgets==8.1.9
	@touch $@

gallery: .venv/ready ## run the notebooks, and save their figures in docs/gallery: RUN=runs/digits/switch_kd
	$(PY) notebooks/run.py --run $(RUN) --figures docs/gallery

tensorboard: .venv/ready ## show all runs in TensorBoard
	.venv/bin/tensorboard --logdir runs

clean: ## remove runs, reports and demo data (not .venv)
	rm -rf runs reports datasets

# targets of version 0.1.0
ablation recipe:
	@$(error '$@' was renamed in 0.2: use 'make $(if $(filter ablation,$@),sweep,pipeline)')
