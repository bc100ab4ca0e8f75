"""Paddle Inference: oneDNN on the CPU, CUDA if Paddle supports it."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ppfcos import environment
from ppfcos.deploy.bundle import OLD_PROGRAM_SUFFIX, PROGRAM_SUFFIX
from ppfcos.deploy.runtimes.paddle_program import check_program
from ppfcos.environment import MissingLibraryError
from ppfcos.errors import BundleError, DeviceError
from ppfcos.fileio import read_bytes

# oneDNN caches primitives per input shape; the limit bounds its memory.
ONEDNN_SHAPES = 10
GPU_POOL_MIB = 256


class PaddleInferenceRuntime:
    """A network in Paddle Inference.

    Thread-safe: concurrent calls run one after another. On the CPU, the process keeps freed memory for the
    next call (`ppfcos.environment.keep_freed_memory`).

    Args:
        program: the program file.
        weights: the weights file.
        output_names: names of the outputs in order, which the program does not know.
        threads: CPU threads.
        device: 'cpu', 'gpu', or 'auto': the GPU if this Paddle has one; each process that
            paddle.distributed.launch started takes its own.
        precision: 'bf16' to compute in bfloat16 on the CPU; otherwise float32.

    Raises:
        MissingLibraryError: Paddle is not installed.
        BundleError: Paddle is too old or cannot load the program, or the program may do more than compute.
        DeviceError: there is no GPU, or the CPU does not compute in bfloat16.
    """

    def __init__(
        self,
        program: Path,
        weights: Path,
        output_names: Sequence[str],
        threads: int,
        device: str = "auto",
        precision: str = "fp32",
    ):
        paddle = _import_paddle()
        _check_program(paddle, program)
        self._lock = threading.Lock()
        self._program = program
        config = _config(paddle, program, weights, threads, _on_gpu(paddle, device))
        if precision == "bf16":
            _compute_in_bfloat16(paddle, config, program, _on_gpu(paddle, device))
        try:
            self._predictor = paddle.inference.create_predictor(config)
        except Exception as error:  # Paddle raises its C++ errors as several types
            raise BundleError(
                f"{program}: Paddle {paddle.__version__} cannot load it, it was written by another version "
                f"({_reason(error)}); export the bundle again"
            ) from error
        self.input_names = tuple(self._predictor.get_input_names())
        self._outputs = dict(zip(output_names, self._predictor.get_output_names()))

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the outputs by name from the inputs in `input_names`; a `BundleError` if that fails."""
        with self._lock:
            try:
                return self._run(inputs)
            except Exception as error:
                shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
                raise BundleError(
                    f"{self._program}: Paddle Inference stopped on {shapes} ({_reason(error)})"
                ) from error

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._copy(inputs)
        self._predictor.run()
        return {
            name: self._predictor.get_output_handle(own).copy_to_cpu() for name, own in self._outputs.items()
        }

    def _copy(self, inputs: Mapping[str, np.ndarray]) -> None:
        for name in self.input_names:
            self._predictor.get_input_handle(name).copy_from_cpu(np.ascontiguousarray(inputs[name]))


def _reason(error: Exception) -> str:
    """The last line of a Paddle error, which states the problem, without the place in its source."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\s*\(at [^()]*\)$", "", lines[-1].strip())


def _import_paddle() -> Any:
    try:
        with environment.quiet_imports():
            import paddle
            import paddle.inference
    except MissingLibraryError:  # it names the cure
        raise
    except ImportError as error:
        raise MissingLibraryError(
            f"Paddle cannot be imported ({error}); `pip install paddlepaddle`, or use another runtime"
        ) from error
    return paddle


def _versions() -> ModuleType:
    """Differences between versions of Paddle; imported late, since it imports Paddle."""
    from ppfcos import paddle_versions

    return paddle_versions


def _check_program(paddle: Any, program: Path) -> None:
    try:
        content = read_bytes(program)
    except OSError as error:
        raise BundleError(f"{program}: cannot be read ({error.strerror}); export it again") from error
    version = check_program(program, content)
    if version > _versions().NEWEST_PROGRAM:
        formats = _versions().PROGRAM_FORMATS
        least = ".".join(map(str, formats.get(version, formats[max(formats)])))
        raise BundleError(
            f"{program}: Paddle {paddle.__version__} cannot run it; install Paddle {least} or later, "
            "use another runtime, such as onnxruntime, or export the model again with this Paddle"
        )


def _on_gpu(paddle: Any, device: str) -> bool:
    available = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    if device not in ("auto", "cpu", "gpu"):
        raise DeviceError(f"device {device!r} is unknown to Paddle Inference; use auto, cpu or gpu")
    if device == "gpu" and not available:
        raise DeviceError("device gpu: this Paddle finds no GPU; use cpu, or install paddlepaddle-gpu")
    return available and device != "cpu"


def _config(paddle: Any, program: Path, weights: Path, threads: int, on_gpu: bool) -> Any:
    config = paddle.inference.Config(str(program), str(weights))
    config.disable_glog_info()
    if program.suffix == PROGRAM_SUFFIX:
        # PIR needs both; without them the memory optimization fails ("Not find predictor_id 0").
        config.enable_new_executor()
        config.enable_new_ir()
    if on_gpu:
        config.enable_use_gpu(GPU_POOL_MIB, environment.launched_gpu())
    else:
        environment.keep_freed_memory()
        config.disable_gpu()
        config.enable_mkldnn()
        config.set_mkldnn_cache_capacity(ONEDNN_SHAPES)
        if _versions().HAS_DOUBLES_IN_PROGRAMS:
            # It also gives oneDNN the operators outside convolutions, and oneDNN stops at the double factors
            # of nearest_interp. With all other passes, convolutions are still oneDNN's.
            config.delete_pass("onednn_placement_pass")
        config.set_cpu_math_library_num_threads(threads)
    config.enable_memory_optim()
    return config


def _compute_in_bfloat16(paddle: Any, config: Any, program: Path, on_gpu: bool) -> None:
    if program.suffix == OLD_PROGRAM_SUFFIX:
        raise DeviceError(
            f"precision bf16: Paddle cannot run {program.name}, a program of Paddle 2.6, in bfloat16; "
            "use fp32, or export the model with Paddle 3"
        )
    if on_gpu or not paddle.base.core.supports_bfloat16():
        raise DeviceError("precision bf16: needs a CPU with bfloat16; use fp32")
    config.enable_mkldnn_bfloat16()
