# Everything the course can do, one target each: `make` alone lists them.
# Needs git, make and Python 3.11 or newer. The first target that runs sets up .venv by itself.

# What .venv is made with.
PYTHON ?= python3
# Any other environment that is ready to use: make test VENV="$CONDA_PREFIX"
VENV ?= .venv
# The smaller torch without CUDA: make lab TORCH=cpu
TORCH ?=
# More arguments for lab, test, grade, results, bench and mutants: make lab ARGS="--no-browser"; make test ARGS="-k masks"
ARGS ?=
# Grade in a container, with docker or podman: make grade SUBMISSIONS=folder ENGINE=docker
ENGINE ?=
# How many processes test at once.
JOBS ?= 2

CORES = $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
RUN = "$(VENV)/bin/python" -m
need = $(if $($(1)),,$(error Say which: make $@ $(1)=$(2)))

.DEFAULT_GOAL = help
.PHONY: help setup lab test format lint solutions publish grade image gradescope marks update new stamp results bench mutants clean

help: ## List the targets; so does `make` alone.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## Set up .venv; every other target does so by itself, once.
ifeq ($(VENV),.venv)
	@TORCH="$(TORCH)" "$(PYTHON)" common/environment.py
endif

lab: setup ## Open JupyterLab at the README.
	@JUPYTER_CONFIG_PATH="$(CURDIR)/.jupyter$${JUPYTER_CONFIG_PATH:+:$$JUPYTER_CONFIG_PATH}" \
	    $(RUN) jupyterlab --LabApp.default_url=/lab/tree/README.md $(ARGS)

test: setup ## Run every test: of the helpers, the checks, and each notebook under nbval.
	@OMP_NUM_THREADS=$$(( $(CORES) > $(JOBS) ? $(CORES) / $(JOBS) : 1 )) \
	    $(RUN) pytest tests -n $(JOBS) --dist loadscope $(ARGS)

format: setup ## Bring code and notebooks into normal form.
	@$(RUN) ruff check --quiet --fix-only .
	@$(RUN) ruff format --quiet .
	@$(RUN) common.notebooks format

lint: setup ## Check the style, the types and the rules of the notebooks.
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(RUN) common.notebooks rules

solutions: setup ## Write the solved notebooks into solutions/; FORCE=1 replaces changed ones.
	@$(RUN) common.notebooks solutions $(if $(FORCE),--force)

publish: setup ## Authors: take solutions/ back onto the branch and into solutions.bundle.
	@$(RUN) common.notebooks publish

grade: $(if $(ENGINE),image,setup) ## Instructors: grade what students handed in: make grade SUBMISSIONS=folder
	$(call need,SUBMISSIONS,folder)@$(if $(ENGINE),common/grading/container/grade $(ENGINE),$(RUN) common.grading) "$(SUBMISSIONS)" $(ARGS)

image: ## Instructors: make the container that `make grade ENGINE=docker` (or podman) grades in.
	$(call need,ENGINE,docker)@DOCKER_BUILDKIT=1 $(ENGINE) build -f common/grading/container/Containerfile -t course-grader .

gradescope: setup ## Instructors: make an autograder for Gradescope: make gradescope UNIT=phase/unit
	$(call need,UNIT,phase/unit)@$(RUN) common.grading.gradescope zip "$(UNIT)" $(ARGS)

marks: setup ## Instructors: take the marks for prose, in grades/marks.csv, into the grades.
	@$(RUN) common.grading.marks $(ARGS)

update: setup ## Bring the course, your answers kept, to a newer version: git's, or NEW=folder.
	@$(RUN) common.notebooks update $(if $(NEW),--new "$(NEW)")

new: setup ## Authors: start a unit from nothing: make new UNIT=phase2_transformers/lab9_name
	$(call need,UNIT,phase/unit)@$(RUN) common.notebooks new "$(UNIT)" $(if $(TITLE),"$(TITLE)") $(if $(NOTEBOOK),--notebook "$(NOTEBOOK)")

stamp: setup ## Authors: write addresses, badges and tables into notebooks and READMEs.
	@$(RUN) common.notebooks stamp

results: setup ## Authors: measure every notebook again, or those in ARGS, and write the tables.
	@$(RUN) common.notebooks results $(ARGS)

bench: setup ## Authors: measure the grader beside nbgrader and otter-grader, and write the table.
	@$(RUN) common.grading.benchmark $(ARGS)

mutants: setup ## Authors: what the checks notice: stored answers, and mutants; ARGS="unit ..." for some.
	@$(RUN) common.grading.mutants $(ARGS)

clean: ## Remove .venv and caches; notebooks, solutions, submissions and grades stay.
	@rm -rf .venv .venv.lock .pytest_cache .mypy_cache .ruff_cache *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
