"""Paddle Inference: oneDNN on a CPU, CUDA where Paddle has it."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from ppfcos import environment
from ppfcos.deploy.bundle import Bundle
from ppfcos.errors import BundleError, DeviceError, PPFCOSError

# Each input shape gets its own oneDNN primitives; this many shapes are kept, for bounded memory.
ONEDNN_SHAPES = 10
GPU_POOL_MIB = 256


class PaddleInferenceRuntime:
    """A bundle's network in Paddle Inference.

    Calls from several threads are safe and run one after another.

    Args:
        bundle: what to run.
        threads: threads of the CPU; None takes OMP_NUM_THREADS, else every core that this process may use.
        device: 'cpu', 'gpu', or 'auto': the GPU if this Paddle has one.

    Raises:
        BundleError: Paddle is not installed, or cannot load the program.
        DeviceError: a GPU is wanted and not there.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None, device: str = "auto"):
        paddle = _import_paddle(bundle)
        self._lock = threading.Lock()
        config = _config(paddle, bundle, threads or default_threads(), _on_gpu(paddle, device))
        try:
            self._predictor = paddle.inference.create_predictor(config)
        except Exception as error:  # Paddle raises its C++ errors as several types
            raise BundleError(
                f"{bundle.directory}: Paddle {paddle.__version__} cannot load this bundle, its files are "
                f"damaged or of another version ({_reason(error)}); export it again"
            ) from error
        self._bundle = bundle

    def run(self, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Run a batch.

        Args:
            inputs: image [B, 3, H, W], im_shape [B, 2] and scale_factor [B, 2], float32.

        Returns:
            bbox [N, 6] (label, score, x0, y0, x1, y1 in pixels of the original images) and bbox_num [B].

        Raises:
            BundleError: Paddle stopped, such as for lack of memory.
        """
        with self._lock:
            try:
                return self._run(inputs)
            except Exception as error:
                shape = "x".join(str(side) for side in inputs["image"].shape)
                raise BundleError(
                    f"{self._bundle.directory}: Paddle Inference stopped on a batch of {shape} "
                    f"({_reason(error)})"
                ) from error

    def _run(self, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        for name in self._predictor.get_input_names():
            self._predictor.get_input_handle(name).copy_from_cpu(np.ascontiguousarray(inputs[name]))
        self._predictor.run()
        bbox, bbox_num = (
            self._predictor.get_output_handle(name).copy_to_cpu()
            for name in self._predictor.get_output_names()
        )
        return bbox, bbox_num


def default_threads() -> int:
    """OMP_NUM_THREADS if it is a number, else the cores that this process may use."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() and int(value) > 0 else environment.available_cores()


def _reason(error: Exception) -> str:
    """The last line of one of Paddle's errors, which says what is wrong, without the place in its source."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\s*\(at [^()]*\)$", "", lines[-1].strip())


def _import_paddle(bundle: Bundle) -> Any:
    try:
        with environment.quiet_imports():
            import paddle
            import paddle.inference
    except PPFCOSError:  # a system library is missing, and the message says so
        raise
    except ImportError as error:
        raise BundleError(
            f"{bundle.directory}: Paddle Inference needs Paddle ({error}); `pip install paddlepaddle`"
        ) from error
    return paddle


def _on_gpu(paddle: Any, device: str) -> bool:
    available = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    if device not in ("auto", "cpu", "gpu"):
        raise DeviceError(f"device {device!r} is not known to Paddle Inference here; take auto, cpu or gpu")
    if device == "gpu" and not available:
        raise DeviceError("device gpu: this Paddle sees no GPU; take cpu, or install paddlepaddle-gpu")
    return available and device != "cpu"


def _config(paddle: Any, bundle: Bundle, threads: int, on_gpu: bool) -> Any:
    config = paddle.inference.Config(str(bundle.program), str(bundle.weights))
    config.disable_glog_info()
    # A program in the new IR needs both; without them the memory optimisation cannot find the predictor.
    config.enable_new_executor()
    config.enable_new_ir()
    if on_gpu:
        config.enable_use_gpu(GPU_POOL_MIB, 0)
    else:
        config.disable_gpu()
        config.enable_mkldnn()
        config.set_mkldnn_cache_capacity(ONEDNN_SHAPES)
        config.set_cpu_math_library_num_threads(threads)
    config.enable_memory_optim()
    return config
