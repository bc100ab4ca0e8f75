"""ONNX Runtime: on a CPU, and with any provider that it was built with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ppfcos.environment import MissingLibraryError
from ppfcos.errors import BundleError, DeviceError, one_line

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
ERRORS_ONLY = 3  # of its log levels
LAUNCHERS_GPUS = "FLAGS_selected_gpus"  # in which paddle.distributed.launch tells a process its GPU


class OnnxRuntime:
    """A network in ONNX Runtime. Calls from several threads run side by side.

    Args:
        file: the ONNX file.
        threads: threads of the CPU that one call uses.
        device: 'cpu'; 'gpu'; 'auto': the GPU if this ONNX Runtime has one; or the name of a provider, such as
            'TensorrtExecutionProvider', behind which come CUDA and the CPU for what it cannot run.

    Raises:
        MissingLibraryError: ONNX Runtime is not installed.
        DeviceError: this ONNX Runtime lacks the provider.
        BundleError: the file cannot be loaded.
    """

    def __init__(self, file: Path, threads: int, device: str = "auto"):
        self._session = open_session(file, threads, device)
        self._file = file
        self.input_names = tuple(each.name for each in self._session.get_inputs())
        self._output_names = [each.name for each in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a batch.

        Args:
            inputs: an array for each of `input_names`.

        Returns:
            The outputs by name.

        Raises:
            BundleError: ONNX Runtime stopped, such as for lack of memory.
        """
        try:
            return dict(zip(self._output_names, self._session.run(self._output_names, dict(inputs))))
        except Exception as error:
            raise BundleError(f"{self._file}: ONNX Runtime stopped ({one_line(error)})") from error


def open_session(file: Path, threads: int, device: str, **settings: Any) -> Any:
    """Load a network.

    Args:
        file: the ONNX file.
        threads: threads of the CPU that one call uses.
        device: as for `OnnxRuntime`.
        settings: further ones of ONNX Runtime's `SessionOptions`, by their names.

    Returns:
        An `onnxruntime.InferenceSession`.

    Raises:
        MissingLibraryError, DeviceError, BundleError: as of `OnnxRuntime`.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingLibraryError(
            f"ONNX Runtime cannot be imported ({error}); `pip install onnxruntime`, or take another runtime"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = ERRORS_ONLY
    for name, value in settings.items():
        setattr(options, name, value)
    providers = _providers(device, onnxruntime.get_available_providers())
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # its errors have no type in common
        raise BundleError(
            f"{file}: ONNX Runtime {onnxruntime.__version__} cannot load it ({one_line(error)}); "
            "export the bundle again, for this version"
        ) from error


def _providers(device: str, available: list[str]) -> list:
    """The providers, each behind those that may take a part of the network before it."""
    number = os.environ.get(LAUNCHERS_GPUS, "0").split(",")[0]
    cuda = [(CUDA_PROVIDER, {"device_id": number})] if CUDA_PROVIDER in available else []
    if device in ("cpu", CPU_PROVIDER):
        return [CPU_PROVIDER]
    if device == "auto":
        return [*cuda, CPU_PROVIDER]
    wanted = CUDA_PROVIDER if device == "gpu" else device
    if wanted not in available:
        raise DeviceError(
            f"device {device}: this ONNX Runtime has no {wanted}, but {', '.join(available)}; "
            "take cpu, or install onnxruntime-gpu"
        )
    return [*([] if wanted == CUDA_PROVIDER else [wanted]), *cuda, CPU_PROVIDER]
