"""TensorRT within Paddle Inference: a program is rewritten for it on the GPU that will run it.

Written after Paddle 3.2's documentation of `paddle.tensorrt`. It has not run on a GPU yet: the tests put a
stand-in in the place of Paddle's conversion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ppfcos.deploy.bundle import MODEL_PREFIX, Bundle
from ppfcos.deploy.preprocess import Preprocess
from ppfcos.errors import BundleError, DeviceError, one_line

TENSORRT = "tensorrt"  # as a device


def example_batches(bundle: Bundle, batch: int) -> list[dict[str, np.ndarray]]:
    """Batches between whose sizes every batch lies: TensorRT runs nothing smaller or larger.

    Args:
        bundle: to be run.
        batch: images at once at the most.

    Returns:
        Inputs of the network: black pictures, wide, upright, and as narrow as they can be.

    Raises:
        BundleError: pictures may have any size.
    """
    preprocess = Preprocess(bundle.preprocess, bundle.input)
    if preprocess.natural_size is None:
        raise BundleError(
            f"{bundle.directory}: device tensorrt: pictures of any size go into the network; "
            "export it with --fixed_size HEIGHT,WIDTH"
        )
    height, width = preprocess.natural_size
    sizes = [(height, width), (width, height), (1, max(height, width)), (max(height, width), 1)]
    pictures = [np.zeros((*size, 3), np.uint8) for size in sizes]
    return [preprocess([picture] * count) for picture in pictures for count in sorted({1, batch})]


def rewritten(
    program: Path, names: Sequence[str], examples: Sequence[Mapping[str, np.ndarray]], folder: Path
) -> tuple[Path, Path]:
    """Have Paddle put TensorRT's engines into a program, which takes minutes.

    Args:
        program: its file.
        names: of its inputs.
        examples: of `example_batches`.
        folder: for the new program, which needs it as long as it runs.

    Returns:
        The files of the new program and of its parameters.

    Raises:
        DeviceError: Paddle was built without TensorRT.
        BundleError: Paddle cannot do it.
    """
    try:
        from paddle.tensorrt.export import Input, TensorRTConfig, convert
    except ImportError as error:
        raise DeviceError(
            f"device {TENSORRT}: this Paddle has no TensorRT ({one_line(error)}); take gpu, or the runtime "
            "onnxruntime with the device TensorrtExecutionProvider"
        ) from error
    target = folder / MODEL_PREFIX
    inputs = [Input(warmup_data=tuple(each[name] for each in examples), name=name) for name in names]
    try:
        convert(str(program.with_suffix("")), TensorRTConfig(inputs=inputs, save_model_dir=str(target)))
    except Exception as error:  # what Paddle and TensorRT raise has no common type
        raise BundleError(
            f"{program}: Paddle could not rewrite it for TensorRT ({one_line(error)}); take device gpu, or "
            "the runtime onnxruntime with the device TensorrtExecutionProvider"
        ) from error
    return target.with_suffix(".json"), target.with_suffix(".pdiparams")
