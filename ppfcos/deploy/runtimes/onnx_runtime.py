"""ONNX Runtime: on a CPU, and with any provider that it was built with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppfcos import environment
from ppfcos.environment import MissingLibraryError
from ppfcos.errors import BundleError, DeviceError, one_line

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
NVIDIAS_PROVIDERS = (CUDA_PROVIDER, "TensorrtExecutionProvider")
ERRORS_ONLY = 3  # of its log levels


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
    providers = providers_for(device, onnxruntime.get_available_providers())
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # its errors have no type in common
        raise BundleError(
            f"{file}: ONNX Runtime {onnxruntime.__version__} cannot load it ({one_line(error)}); "
            "export the bundle again, for this version"
        ) from error


def providers_for(device: str, available: Sequence[str]) -> list[Any]:
    """The providers that run a network, the one that is wanted first.

    Args:
        device: as for `OnnxRuntime`.
        available: the names of those that there are.

    Returns:
        Names, or names with options, each behind those that may take a part of the network before it.
        NVIDIA's run on the GPU that the launcher gave to this process.

    Raises:
        DeviceError: the wanted one is not among them.
    """
    if device in ("cpu", CPU_PROVIDER):
        return [CPU_PROVIDER]
    wanted = {"auto": CPU_PROVIDER, "gpu": CUDA_PROVIDER}.get(device, device)
    if wanted not in available:
        raise DeviceError(
            f"device {device}: this ONNX Runtime has no {wanted}, but {', '.join(available)}; "
            "take cpu, or install onnxruntime-gpu"
        )
    cuda = [CUDA_PROVIDER] if CUDA_PROVIDER in available else []
    names = dict.fromkeys([*([] if device == "auto" else [wanted]), *cuda, CPU_PROVIDER])
    number = {"device_id": str(environment.launched_gpu())}
    return [(name, number) if name in NVIDIAS_PROVIDERS else name for name in names]
