"""OpenVINO: Intel's runtime, on x86 and Arm CPUs and Intel's accelerators."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from ppfcos.deploy.onnx_files import OnnxFile
from ppfcos.environment import MissingLibraryError
from ppfcos.errors import BundleError, DeviceError, one_line

# By default OpenVINO computes in bfloat16 if the CPU supports it, and boxes move by pixels.
FLOAT32, BFLOAT16 = "f32", "bf16"


class OpenVinoRuntime:
    """A network in OpenVINO. Thread-safe; each thread has its own infer request.

    Args: as of `compile_network`.
    """

    def __init__(self, file: OnnxFile, threads: int, device: str = "auto", precision: str = "fp32"):
        self._compiled = compile_network(file, threads, device, precision)
        sides = [side for each in self._compiled.inputs for side in list(each.partial_shape)[1:]]
        free_size = any(side.is_dynamic for side in sides)
        if precision == "int8" and free_size:
            # Seen with 2026.4: if height and width are free, all channels of a last convolution get the bias
            # of the first one. With a fixed size and any batch size the biases are right.
            raise BundleError(
                f"{file.path}: OpenVINO gives wrong scores with an INT8 network without a fixed size; "
                "export it with --fixed_size HEIGHT,WIDTH, or use the runtime onnxruntime"
            )
        self._path = file.path
        self._requests = threading.local()
        self.input_names = tuple(each.get_any_name() for each in self._compiled.inputs)
        # An output may have several names, one of which is in the bundle.
        self._outputs = {
            name: i for i, each in enumerate(self._compiled.outputs) for name in each.get_names()
        }

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the outputs by name from the inputs in `input_names`; a `BundleError` if that fails."""
        try:
            if not hasattr(self._requests, "own"):
                self._requests.own = self._compiled.create_infer_request()
            outputs = self._requests.own.infer(dict(inputs))
        except Exception as error:
            raise BundleError(f"{self._path}: OpenVINO stopped ({one_line(error)})") from error
        return {name: outputs[i] for name, i in self._outputs.items()}


def compile_network(file: OnnxFile, threads: int, device: str, precision: str, **settings: Any) -> Any:
    """Compile a network to an `openvino.CompiledModel`.

    Args:
        file: the ONNX file.
        threads: CPU threads, shared by all calls.
        device: 'cpu', 'gpu', 'auto' (the CPU), or one of OpenVINO's own names.
        precision: 'bf16' to compute in bfloat16; otherwise float layers compute in float32.
        settings: further properties of OpenVINO.

    Raises:
        MissingLibraryError: OpenVINO is not installed.
        DeviceError: OpenVINO does not find the device, or it does not compute in bfloat16.
        BundleError: the file cannot be loaded.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingLibraryError(
            f"OpenVINO cannot be imported ({error}); `pip install openvino`, or use another runtime"
        ) from error
    core = openvino.Core()
    name = _device(core, device, precision)
    settings["PERFORMANCE_HINT"] = "LATENCY"
    if name == "CPU":
        settings["INFERENCE_NUM_THREADS"] = threads
        # With pinning, the threads of all networks in the process share the first cores.
        settings["ENABLE_CPU_PINNING"] = False
        settings["INFERENCE_PRECISION_HINT"] = BFLOAT16 if precision == "bf16" else FLOAT32
    try:
        return core.compile_model(core.read_model(file.content), name, settings)
    except Exception as error:  # its errors have no common base
        raise BundleError(
            f"{file.path}: OpenVINO {openvino.__version__} cannot load it ({one_line(error)}); "
            "export the bundle again for this version"
        ) from error


def _device(core: object, device: str, precision: str) -> str:
    name = "CPU" if device == "auto" else device.upper()
    if name not in core.available_devices and name.split(":")[0] not in ("AUTO", "HETERO", "MULTI"):
        raise DeviceError(
            f"device {device}: OpenVINO finds {', '.join(core.available_devices) or 'none'}; use one of these"
        )
    if precision == "bf16" and "BF16" not in core.get_property(name, "OPTIMIZATION_CAPABILITIES"):
        raise DeviceError(f"precision bf16: OpenVINO's {name} does not compute in bfloat16 here; use fp32")
    return name
