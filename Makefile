# make demo        train, evaluate, export and run a small FCOS on drawn shapes, on a CPU, in a few minutes
# make test        all tests but the slow ones; make test-fast: unit tests only; make lint: style
# make docs        build the documentation site into site/; make docs-check: test what the documentation says
# make PYTHON=/path/to/python3.12 ...   use this Python

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test test-fast docs docs-check lint help

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install -qq --disable-pip-version-check
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
DOCS_VENV := .venv-docs

DEMO := fcos_demo_shapes
DEMO_CONFIG := configs/$(DEMO).yml
DEMO_DATA := dataset/shapes/annotations/instances_val2017.json
DEMO_OUTPUT := output/$(DEMO)
DEMO_BUNDLE := output_inference/$(DEMO)
DEMO_PICTURES := $(DEMO_OUTPUT)/pictures

help:
	@sed -n 's/^# //p' Makefile | head -n 4

# Environment ------------------------------------------------------------------------------------------------

NEEDED_MB := 3000
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 13))
# The newest first. 3.13 comes after 3.12 because paddle2onnx, which exports to ONNX, has no wheel for it.
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3.12 python3.13 python3.11 python3.10 python3.9 python3 python)
# Older Pythons get a tested set of older versions.
CHOOSE := import sys; print("requirements" if sys.version_info >= (3, 12) else "requirements/conservative", end=".txt")

$(PY):
	@for each in $(CANDIDATES); do \
	  if "$$each" -c "$(SUITABLE)" >/dev/null 2>&1; then \
	    echo "making $(VENV) with $$("$$each" --version)"; \
	    exec "$$each" -m venv --clear $(VENV); \
	  fi; \
	done; \
	echo "error: no Python 3.9 to 3.13 with venv among: $(CANDIDATES); run make PYTHON=/path/to/python3.12" >&2; \
	exit 2

$(INSTALLED): requirements.txt $(wildcard requirements/*.txt) | $(PY)
	@free=$$(df -Pm . | awk 'NR == 2 {print $$4}'); (( free >= $(NEEDED_MB) )) || { \
	  echo "error: $(CURDIR) has $$free MB of free disk space, and the installation needs $(NEEDED_MB) MB" >&2; \
	  exit 2; }
	@file=$$($(PY) -c '$(CHOOSE)'); echo "installing $$file into $(VENV)"; $(PIP) -r $$file
	@$(PIP) --no-deps -r requirements/paddledet.txt
	@for each in cv2 paddle; do \
	  $(PY) -c "import $$each" >$(VENV)/import.log 2>&1 || { \
	    echo "error: $$(tail -n 1 $(VENV)/import.log) (on Debian and Ubuntu: apt-get install libgomp1)" >&2; exit 2; }; \
	done
	@touch $@

# Tests that need PyTorch are skipped without it. Its own index has a CPU build of a tenth of the size.
$(INSTALLED_DEV): $(INSTALLED)
	@echo "installing requirements/dev.txt into $(VENV)"
	@$(PIP) -r $$($(PY) -c '$(CHOOSE)') -r requirements/dev.txt
	@$(PIP) --no-deps -r requirements/tests_apart.txt
	@$(PIP) --retries 1 -r requirements/torch.txt || echo "no PyTorch: comparisons with it are skipped"
	@touch $@

# Demo: a step is skipped if its result exists ----------------------------------------------------------------

$(DEMO_DATA): | $(INSTALLED)
	$(PY) dataset/shapes/generate_shapes.py

$(DEMO_OUTPUT)/.trained: $(DEMO_CONFIG) | $(DEMO_DATA)
	$(PY) tools/train.py -c $(DEMO_CONFIG) --eval --use_vdl=true --vdl_log_dir $(DEMO_OUTPUT)/vdl
	@touch $@

$(DEMO_BUNDLE)/infer_cfg.yml: $(DEMO_OUTPUT)/.trained
	$(PY) tools/export_model.py -c $(DEMO_CONFIG) -o weights=$(DEMO_OUTPUT)/best_model.pdparams \
	  --output_dir $(dir $(DEMO_BUNDLE))

$(DEMO_PICTURES)/.drawn: $(DEMO_BUNDLE)/infer_cfg.yml
	$(PY) tools/infer.py --bundle $(DEMO_BUNDLE) --infer_dir dataset/shapes/val2017 \
	  --output_dir $(DEMO_PICTURES) --draw_threshold 0.3 | tail -n 1
	@touch $@

demo: $(DEMO_PICTURES)/.drawn
	@echo
	@echo "pictures:      $(DEMO_PICTURES)"
	@echo "checkpoint:    $(DEMO_OUTPUT)/best_model.pdparams"
	@echo "bundle:        $(DEMO_BUNDLE)"
	@echo "VisualDL log:  $(DEMO_OUTPUT)/vdl   ($(VENV)/bin/visualdl --logdir $(DEMO_OUTPUT)/vdl --language en)"

# Tests, style and documentation -------------------------------------------------------------------------------

# Two processes of one thread each keep two cores busy while a test waits for a process that it started.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile

test: $(INSTALLED_DEV)
	$(PYTEST) tests -m "not slow and not docs"

test-fast: $(INSTALLED_DEV)
	$(PYTEST) tests -m "unit and not slow"

docs-check: $(INSTALLED_DEV)
	$(PYTEST) tests/docs -m "not slow"

lint: $(INSTALLED_DEV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# The site needs neither Paddle nor this package installed: mkdocstrings reads the sources.
$(DOCS_VENV)/.installed: requirements/docs.txt | $(PY)
	@$(PY) -m venv --clear $(DOCS_VENV)
	@$(DOCS_VENV)/bin/python -m pip install -qq --disable-pip-version-check -r requirements/docs.txt
	@touch $@

docs: $(DOCS_VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict
