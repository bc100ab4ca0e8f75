# make demo   train, evaluate, export and run a small FCOS on drawn shapes, on the CPU, in a few minutes
# make test   the tests that take seconds; `make lint` checks the style
# make PYTHON=/path/to/python3.11 ...   when none of python3.11, python3.10, python3.9, python3 will do

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test lint help

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install -qq --disable-pip-version-check
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev

DEMO := fcos_demo_shapes
DEMO_CONFIG := configs/$(DEMO).yml
DEMO_DATA := dataset/shapes/annotations/instances_val2017.json
DEMO_OUTPUT := output/$(DEMO)
DEMO_BUNDLE := output_inference/$(DEMO)
DEMO_PICTURES := $(DEMO_OUTPUT)/pictures

help:
	@sed -n 's/^# //p' Makefile | head -n 3

# The environment ------------------------------------------------------------------------------------------

NEEDED_MB := 3000
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 11))
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3.11 python3.10 python3.9 python3 python)

$(PY):
	@for each in $(CANDIDATES); do \
	  if "$$each" -c "$(SUITABLE)" >/dev/null 2>&1; then \
	    echo "making $(VENV) with $$("$$each" --version)"; \
	    exec "$$each" -m venv --clear $(VENV); \
	  fi; \
	done; \
	echo "error: no Python 3.9 to 3.11 with venv among: $(CANDIDATES); say make PYTHON=/path/to/python3.11" >&2; \
	exit 2

$(INSTALLED): requirements.txt requirements/base.txt requirements/train.txt requirements/cpu.txt \
              requirements/onnx.txt requirements/openvino.txt | $(PY)
	@free=$$(df -Pm . | awk 'NR == 2 {print $$4}'); (( free >= $(NEEDED_MB) )) || { \
	  echo "error: $(CURDIR) has $$free MB of disk left, and the installation takes $(NEEDED_MB): free some" >&2; \
	  exit 2; }
	@echo "installing requirements.txt into $(VENV)"
	@$(PIP) -r requirements.txt
	@for each in cv2 paddle; do \
	  $(PY) -c "import $$each" >$(VENV)/import.log 2>&1 || { \
	    echo "error: $$(tail -n 1 $(VENV)/import.log)" \
      "(on Debian and Ubuntu: apt-get install libgl1 libglib2.0-0 libgomp1)" >&2; exit 2; }; \
	done
	@touch $@

# Both files at once, and PyTorch within the limits of the first: alone, it would lift setuptools above them.
$(INSTALLED_DEV): requirements/dev.txt requirements/torch.txt requirements/tests_apart.txt $(INSTALLED)
	@echo "installing requirements/dev.txt into $(VENV)"
	@$(PIP) -r requirements.txt -r requirements/dev.txt
	@$(PIP) --retries 1 -r requirements/torch.txt -c requirements/train.txt
	@$(PIP) --no-deps -r requirements/tests_apart.txt
	@touch $@

# The demo: each step is skipped where its result is there already ------------------------------------------

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

# The tests and the style -----------------------------------------------------------------------------------

# Two processes of one thread each: two cores are busy, also while a test waits for a process that it has started.
test: $(INSTALLED_DEV)
	OMP_NUM_THREADS=1 $(PY) -m pytest tests -q -m "not slow" -n 2 --dist loadfile

lint: $(INSTALLED_DEV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
