"""Run PaddleDetection's deploy/python/infer.py, as published, on a Paddle 3 program.

    python tools/run_paddledetection_infer.py PaddleDetection/deploy/python/infer.py \\
        --model_dir BUNDLE --image_file photo.jpg

It takes the script of PaddleDetection's branch `develop`: those of its releases up to 2.7 look for programs
of Paddle 2 alone. The script leaves out two calls without which Paddle Inference refuses every program of the
new format ("Not find predictor_id 0"), PaddleDetection's own models among them. They are made here, before
its predictor is.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
import types

import paddle.inference


def accept_new_programs() -> None:
    """Let Paddle Inference load programs of the new format, whoever asks for them in this process."""
    create_predictor = paddle.inference.create_predictor

    def create_with_new_executor(config):
        config.enable_new_executor()
        config.enable_new_ir()
        return create_predictor(config)

    paddle.inference.create_predictor = create_with_new_executor


def do_without_imgaug() -> None:
    """Put something empty in the place of a package that is not installed.

    The script's preprocessing imports it for a lane detector, and uses it for nothing else.
    """
    if importlib.util.find_spec("imgaug") is None:
        for name in ("imgaug", "imgaug.augmenters"):
            sys.modules[name] = types.ModuleType(name)


def main() -> None:
    """Start the script with its own arguments."""
    if len(sys.argv) < 2 or not os.path.isfile(sys.argv[1]):
        print(
            f"error: the first argument must be PaddleDetection's deploy/python/infer.py\n{__doc__}",
            file=sys.stderr,
        )
        raise SystemExit(2)
    accept_new_programs()
    do_without_imgaug()
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
