"""Run PaddleDetection's deploy/python/infer.py, as published, on a Paddle 3 program.

    python tools/run_paddledetection_infer.py PaddleDetection/deploy/python/infer.py \\
        --model_dir BUNDLE --image_file photo.jpg

Needs the script of PaddleDetection's branch `develop`: the releases up to 2.7 only find programs of Paddle 2.
The script lacks two calls without which Paddle Inference refuses every PIR program ("Not find predictor_id
0"), including PaddleDetection's own models. They are added here, before the predictor is created.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
import types

import paddle.inference


def enable_pir_programs() -> None:
    """Make Paddle Inference load PIR programs in this process."""
    create_predictor = paddle.inference.create_predictor

    def create_with_new_executor(config):
        config.enable_new_executor()
        config.enable_new_ir()
        return create_predictor(config)

    paddle.inference.create_predictor = create_with_new_executor


def replace_missing_imgaug() -> None:
    """Replace imgaug by an empty module if it is missing: the script only uses it for a lane detector."""
    if importlib.util.find_spec("imgaug") is None:
        for name in ("imgaug", "imgaug.augmenters"):
            sys.modules[name] = types.ModuleType(name)


def main() -> None:
    """Run the script with its own arguments."""
    if len(sys.argv) < 2 or not os.path.isfile(sys.argv[1]):
        print(
            f"error: the first argument must be PaddleDetection's deploy/python/infer.py\n{__doc__}",
            file=sys.stderr,
        )
        raise SystemExit(2)
    enable_pir_programs()
    replace_missing_imgaug()
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
