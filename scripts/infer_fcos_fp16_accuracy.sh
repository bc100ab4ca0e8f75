#!/bin/bash
# Accuracy of an exported FCOS in half precision: AP on COCO's validation set, exit code 1 below the target.
#
#   export DATASETS_DIR=/path/to/coco            # with val2017/ and annotations/
#   export CHECKPOINTS_DIR=/path/to/checkpoints  # with the bundle written by tools/export_model.py
#   bash scripts/infer_fcos_fp16_accuracy.sh [--bs 32] [--tgt 0.385] [further options of tools/eval.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/infer_fcos_common.sh"

parse_options 32 "$@"
gate=()
[ -n "$TARGET" ] && gate=(--require-ap "$TARGET")
run_eval ${gate[@]+"${gate[@]}"} ${FURTHER[@]+"${FURTHER[@]}"}  # bash before 4.4 treats an empty array as unset
