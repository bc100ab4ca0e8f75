"""ONNX Runtime: on a CPU, and with any provider that it was built with."""

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
    """A network in ONNX Runtime. Calls from several threads run side by side.

    Args:
        file: the ONNX file.
        threads: threads of the CPU that one call uses.
        device: 'cpu'; 'gpu'; 'auto': the GPU if this ONNX Runtime has one; or the name of a provider, such as
            'TensorrtExecutionProvider', behind which come CUDA and the CPU for what it cannot run.
        one_size: all images have one size, so that it pays to try for it all ways to compute a convolution.

    Raises:
        MissingLibraryError: ONNX Runtime is not installed.
        DeviceError: this ONNX Runtime lacks the provider, or the provider's libraries cannot be loaded.
        BundleError: the file cannot be loaded.
    """

    def __init__(self, file: OnnxFile, threads: int, device: str = "auto", one_size: bool = False):
        self._session = open_session(file, threads, device, one_size)
        self._path = file.path
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
            raise BundleError(f"{self._path}: ONNX Runtime stopped ({one_line(error)})") from error


def open_session(file: OnnxFile, threads: int, device: str, one_size: bool = False, **settings: Any) -> Any:
    """Load a network.

    Args:
        file: the ONNX file.
        threads: threads of the CPU that one call uses.
        device: as for `OnnxRuntime`.
        one_size: likewise.
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
    options.log_severity_level = FATAL_ONLY  # errors are raised, too
    # Without it, ONNX Runtime may take the content for its own format, which was not checked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    for name, value in settings.items():
        setattr(options, name, value)
    providers = providers_for(device, onnxruntime.get_available_providers(), one_size)
    wanted = _provider_name(providers[0])
    if wanted in NVIDIAS_PROVIDERS:
        _prepare_for_cuda(onnxruntime)
    try:
        session = onnxruntime.InferenceSession(file.content, options, providers=providers)
    except Exception as error:  # its errors have no type in common
        raise BundleError(
            f"{file.path}: ONNX Runtime {onnxruntime.__version__} cannot load it ({one_line(error)}); "
            "export the bundle again, for this version"
        ) from error
    if wanted not in session.get_providers():  # ONNX Runtime has taken the CPU, and told nobody
        problem = f"ONNX Runtime {onnxruntime.__version__} cannot load the libraries of {wanted}"
        cure = "install those it was built for: pip install onnxruntime-gpu[cuda,cudnn]"
        if device != "auto":
            raise DeviceError(f"device {device}: {problem}; take cpu, or {cure}")
        logger.warning("%s and runs on the CPU; %s", problem, cure)
    return session


def providers_for(device: str, available: Sequence[str], one_size: bool = False) -> list[Any]:
    """The providers that run a network, the one that is wanted first.

    Args:
        device: as for `OnnxRuntime`.
        available: the names of those that there are.
        one_size: as for `OnnxRuntime`.

    Returns:
        Names, or names with options, each behind those that may take a part of the network before it.
        NVIDIA's run on the GPU that the launcher gave to this process, and CUDA computes float32 in float32.

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
    # Left alone, CUDA's convolutions have the 10 bits of TF32 from Ampere on. What was found for one size is
    # forgotten with the next: where sizes change, a search takes several times as long as the network.
    search = "EXHAUSTIVE" if one_size else "DEFAULT"
    cuda_options = {**number, "use_tf32": "0", "cudnn_conv_algo_search": search}
    options = {CUDA_PROVIDER: cuda_options, TENSORRT_PROVIDER: number}
    return [(name, options[name]) if name in options else name for name in names]


def _prepare_for_cuda(onnxruntime: Any) -> None:
    # It reports as an error each way to compute a convolution that this GPU lacks, and goes on with another.
    onnxruntime.set_default_logger_severity(FATAL_ONLY)
    if hasattr(onnxruntime, "preload_dlls"):  # CUDA's libraries as Python packages are not where one looks
        with contextlib.redirect_stdout(io.StringIO()):  # whether it worked is seen soon enough
            onnxruntime.preload_dlls()


def _provider_name(provider: Any) -> str:
    return provider if isinstance(provider, str) else provider[0]
