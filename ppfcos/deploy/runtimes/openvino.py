"""OpenVINO: Intel's runtime, on any x86 or Arm CPU, and on Intel's accelerators."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from ppfcos.deploy.onnx_files import OnnxFile
from ppfcos.environment import MissingLibraryError
from ppfcos.errors import BundleError, DeviceError, one_line

# What OpenVINO computes in. Left to itself it takes bfloat16 where the CPU has it, and boxes move by pixels.
FLOAT32, BFLOAT16 = "f32", "bf16"


class OpenVinoRuntime:
    """A network in OpenVINO. Calls from several threads are safe; each thread has a request of its own.

    Args:
        file: the ONNX file.
        threads: threads of the CPU in all.
        device: 'cpu', 'gpu', 'auto' (the CPU), or one of OpenVINO's own names.
        precision: 'bf16' to compute in bfloat16; else in float32 what the file does not say otherwise.

    Raises:
        MissingLibraryError: OpenVINO is not installed.
        DeviceError: OpenVINO does not see the device, or it does not compute in bfloat16.
        BundleError: the file cannot be loaded, or OpenVINO would run it wrongly.
    """

    def __init__(self, file: OnnxFile, threads: int, device: str = "auto", precision: str = "fp32"):
        self._compiled = compile_network(file, threads, device, precision)
        sides = [side for each in self._compiled.inputs for side in list(each.partial_shape)[1:]]
        free_size = any(side.is_dynamic for side in sides)
        if precision == "int8" and free_size:
            # Seen with 2026.4: where height and width are free, all channels of a last convolution get the
            # bias of the first. With a fixed size, whatever the batch, the biases are right.
            raise BundleError(
                f"{file.path}: OpenVINO gives wrong scores with an INT8 network of a free size; "
                "export it with --fixed_size HEIGHT,WIDTH, or take the runtime onnxruntime"
            )
        self._path = file.path
        self._requests = threading.local()
        self.input_names = tuple(each.get_any_name() for each in self._compiled.inputs)
        # An output may have several names, of which the bundle knows one.
        self._outputs = {
            name: i for i, each in enumerate(self._compiled.outputs) for name in each.get_names()
        }

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a batch.

        Args:
            inputs: an array for each of `input_names`.

        Returns:
            The outputs by name.

        Raises:
            BundleError: OpenVINO stopped, such as for lack of memory.
        """
        try:
            if not hasattr(self._requests, "own"):
                self._requests.own = self._compiled.create_infer_request()
            answer = self._requests.own.infer(dict(inputs))
        except Exception as error:
            raise BundleError(f"{self._path}: OpenVINO stopped ({one_line(error)})") from error
        return {name: answer[i] for name, i in self._outputs.items()}


def compile_network(file: OnnxFile, threads: int, device: str, precision: str, **settings: Any) -> Any:
    """Load a network.

    Args:
        file: the ONNX file.
        threads: threads of the CPU in all.
        device: as for `OpenVinoRuntime`.
        precision: likewise.
        settings: further properties of OpenVINO, by their names.

    Returns:
        An `openvino.CompiledModel`.

    Raises:
        MissingLibraryError, DeviceError, BundleError: as of `OpenVinoRuntime`.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingLibraryError(
            f"OpenVINO cannot be imported ({error}); `pip install openvino`, or take another runtime"
        ) from error
    core = openvino.Core()
    name = _device(core, device, precision)
    settings["PERFORMANCE_HINT"] = "LATENCY"
    if name == "CPU":
        settings["INFERENCE_NUM_THREADS"] = threads
        # Pinned, the threads of every network in the process would share the first cores.
        settings["ENABLE_CPU_PINNING"] = False
        settings["INFERENCE_PRECISION_HINT"] = BFLOAT16 if precision == "bf16" else FLOAT32
    try:
        return core.compile_model(core.read_model(file.content), name, settings)
    except Exception as error:  # its errors have no type in common
        raise BundleError(
            f"{file.path}: OpenVINO {openvino.__version__} cannot load it ({one_line(error)}); "
            "export the bundle again, for this version"
        ) from error


def _device(core: object, device: str, precision: str) -> str:
    name = "CPU" if device == "auto" else device.upper()
    if name not in core.available_devices and name.split(":")[0] not in ("AUTO", "HETERO", "MULTI"):
        raise DeviceError(
            f"device {device}: OpenVINO sees {', '.join(core.available_devices) or 'none'}; take one of these"
        )
    if precision == "bf16" and "BF16" not in core.get_property(name, "OPTIMIZATION_CAPABILITIES"):
        raise DeviceError(f"precision bf16: OpenVINO's {name} does not compute in bfloat16 here; take fp32")
    return name
