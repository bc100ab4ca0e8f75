"""ONNX Runtime, on the CPU or any provider it was built with."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ppfcos import environment
from ppfcos.deploy.onnx_files import OnnxFile
from ppfcos.environment import MissingLibraryError
from ppfcos.errors import BundleError, DeviceError, one_line

logger = logging.getLogger(__name__)

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
NVIDIAS_PROVIDERS = (CUDA_PROVIDER, TENSORRT_PROVIDER)
FATAL_ONLY = 4  # of its log levels


class OnnxRuntime:
    """A network in ONNX Runtime. Concurrent calls run in parallel.

    Args: as of `open_session`.
    """

    def __init__(self, file: OnnxFile, threads: int, device: str = "auto", one_size: bool = False):
        self._session = open_session(file, threads, device, one_size)
        self._path = file.path
        self.input_names = tuple(each.name for each in self._session.get_inputs())
        self._output_names = [each.name for each in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the outputs by name from the inputs in `input_names`; a `BundleError` if that fails."""
        try:
            return dict(zip(self._output_names, self._session.run(self._output_names, dict(inputs))))
        except Exception as error:
            raise BundleError(f"{self._path}: ONNX Runtime stopped ({one_line(error)})") from error


def open_session(file: OnnxFile, threads: int, device: str, one_size: bool = False, **settings: Any) -> Any:
    """Create an `onnxruntime.InferenceSession`.

    Args:
        file: the ONNX file.
        threads: CPU threads of one call.
        device: 'cpu'; 'gpu'; 'auto': the GPU if this ONNX Runtime has one; or the name of a provider, such as
            'TensorrtExecutionProvider', with CUDA and the CPU as fallbacks.
        one_size: all images have one size, so that an exhaustive search for convolution algorithms pays off.
        settings: further attributes of ONNX Runtime's `SessionOptions`.

    Raises:
        MissingLibraryError: ONNX Runtime is not installed.
        DeviceError: this ONNX Runtime lacks the provider, or cannot load the provider's libraries.
        BundleError: the file cannot be loaded.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingLibraryError(
            f"ONNX Runtime cannot be imported ({error}); `pip install onnxruntime`, or use another runtime"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = FATAL_ONLY  # errors are raised anyway
    # Otherwise ONNX Runtime may take the content for its own format, which has not been checked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    for name, value in settings.items():
        setattr(options, name, value)
    providers = providers_for(device, onnxruntime.get_available_providers(), one_size)
    wanted = _provider_name(providers[0])
    if wanted in NVIDIAS_PROVIDERS:
        _prepare_for_cuda(onnxruntime)
    try:
        session = onnxruntime.InferenceSession(file.content, options, providers=providers)
    except Exception as error:  # its errors have no common base
        raise BundleError(
            f"{file.path}: ONNX Runtime {onnxruntime.__version__} cannot load it ({one_line(error)}); "
            "export the bundle again for this version"
        ) from error
    if wanted not in session.get_providers():  # ONNX Runtime silently falls back to the CPU
        problem = f"ONNX Runtime {onnxruntime.__version__} cannot load the libraries of {wanted}"
        cure = "install those it was built for: pip install onnxruntime-gpu[cuda,cudnn]"
        if device != "auto":
            raise DeviceError(f"device {device}: {problem}; use cpu, or {cure}")
        logger.warning("%s and runs on the CPU; %s", problem, cure)
    return session


def providers_for(device: str, available: Sequence[str], one_size: bool = False) -> list[Any]:
    """Names of execution providers, or (name, options), in order of priority.

    NVIDIA's run on the GPU that the launcher assigned to this process, and CUDA computes float32 without
    TF32.

    Args:
        device: as of `open_session`.
        available: names of the available providers.
        one_size: as of `open_session`.

    Raises:
        DeviceError: the requested provider is not available.
    """
    if device in ("cpu", CPU_PROVIDER):
        return [CPU_PROVIDER]
    wanted = {"auto": CPU_PROVIDER, "gpu": CUDA_PROVIDER}.get(device, device)
    if wanted not in available:
        raise DeviceError(
            f"device {device}: this ONNX Runtime has no {wanted}, but {', '.join(available)}; "
            "use cpu, or install onnxruntime-gpu"
        )
    cuda = [CUDA_PROVIDER] if CUDA_PROVIDER in available else []
    names = dict.fromkeys([*([] if device == "auto" else [wanted]), *cuda, CPU_PROVIDER])
    number = {"device_id": str(environment.launched_gpu())}
    # By default, convolutions have the 10 bits of TF32 from Ampere on. The algorithm found for a size is
    # forgotten with the next size: where sizes change, a search takes several times as long as the network.
    search = "EXHAUSTIVE" if one_size else "DEFAULT"
    cuda_options = {**number, "use_tf32": "0", "cudnn_conv_algo_search": search}
    options = {CUDA_PROVIDER: cuda_options, TENSORRT_PROVIDER: number}
    return [(name, options[name]) if name in options else name for name in names]


def _prepare_for_cuda(onnxruntime: Any) -> None:
    # It logs an error for each convolution algorithm that this GPU lacks, and continues with another one.
    onnxruntime.set_default_logger_severity(FATAL_ONLY)
    if hasattr(onnxruntime, "preload_dlls"):  # finds CUDA's libraries that are Python packages
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()


def _provider_name(provider: Any) -> str:
    return provider if isinstance(provider, str) else provider[0]
