# Common part of the two scripts, sourced by them.

PROJ_DIR=${PROJ_DIR:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
CHECKPOINTS_DIR=${CHECKPOINTS_DIR:-$PROJ_DIR/output_inference}
DATASETS_DIR=${DATASETS_DIR:-$PROJ_DIR/dataset/coco}
CONFIG=${CONFIG:-$PROJ_DIR/configs/fcos_r50_fpn_1x_coco.yml}
BUNDLE=${BUNDLE:-$CHECKPOINTS_DIR/$(basename "$CONFIG" .yml)}
RUNTIME=${RUNTIME:-auto}
PRECISION=${PRECISION:-fp16}
PYTHON=${PYTHON:-python3}

# parse_options DEFAULT_BATCH OPTIONS...: sets BATCH, TARGET (or empty) and FURTHER
parse_options() {
  BATCH=$1 TARGET= FURTHER=()
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      --bs | --tgt)
        [ $# -ge 2 ] || { echo "error: $1 needs a number" >&2; exit 2; }
        if [ "$1" = --bs ]; then BATCH=$2; else TARGET=$2; fi
        shift 2 ;;
      *) FURTHER+=("$1"); shift ;;
    esac
  done
}

# run_eval OPTIONS...: runs tools/eval.py with these options and those from the environment
run_eval() {
  exec "$PYTHON" "$PROJ_DIR/tools/eval.py" -c "$CONFIG" -o EvalDataset.dataset_dir="$DATASETS_DIR" \
    --bundle "$BUNDLE" --runtime "$RUNTIME" --precision "$PRECISION" --batch "$BATCH" "$@"
}
