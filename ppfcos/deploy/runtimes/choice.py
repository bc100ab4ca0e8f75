"""Choice of the runtime for a bundle."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, NamedTuple

from ppfcos import environment
from ppfcos.deploy.bundle import ONNX, PADDLE, PRECISIONS, Bundle
from ppfcos.errors import BundleError, ConfigError

if TYPE_CHECKING:  # this module is imported for its names alone, such as for `--help`
    from ppfcos.deploy.networks import Network

AUTO = "auto"


class Library(NamedTuple):
    """The library of a runtime.

    Attributes:
        module: the module to import.
        format: format of the networks it reads.
        casts: precisions in which it computes with the fp32 network.
    """

    module: str
    format: str
    casts: tuple[str, ...]


# In the order of preference of `auto`: light to install and fast to load first.
LIBRARIES = {
    "onnxruntime": Library("onnxruntime", ONNX, ()),
    "openvino": Library("openvino", ONNX, ("bf16",)),
    "paddle": Library("paddle", PADDLE, ("bf16",)),
}
RUNTIMES = (AUTO, *LIBRARIES)


def open_network(bundle: Bundle, runtime: str, precision: str, threads: int | None, device: str) -> Network:
    """Load a bundle's network; arguments and errors as of `ppfcos.deploy.Predictor`."""
    name = chosen_runtime(bundle, runtime, precision)
    stored = _stored_precision(bundle, name, precision)
    if stored is None:
        raise BundleError(
            f"{bundle.directory}: has no network for {name} in {precision}; it has {_networks_of(bundle)}"
        )
    return _load(name, stored, bundle, precision, threads or default_threads(), device)


def chosen_runtime(bundle: Bundle, runtime: str, precision: str) -> str:
    """`runtime` itself, or the runtime that `auto` resolves to for this bundle and precision.

    Raises:
        ConfigError: an unknown runtime or precision.
        BundleError: no runtime can run the bundle in this precision.
        MissingLibraryError: none of those that can is installed.
    """
    for value, known, what in ((runtime, RUNTIMES, "runtime"), (precision, PRECISIONS, "precision")):
        if value not in known:
            raise ConfigError(f"{what} {value!r} is unknown; use one of {', '.join(known)}")
    return _first_installed(bundle, precision) if runtime == AUTO else runtime


def default_threads() -> int:
    """OMP_NUM_THREADS if it is a number, otherwise the cores available to the process."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() and int(value) > 0 else environment.available_cores()


def _first_installed(bundle: Bundle, precision: str) -> str:
    able = [name for name in LIBRARIES if _stored_precision(bundle, name, precision) is not None]
    for name in able:
        if importlib.util.find_spec(LIBRARIES[name].module) is not None:
            return name
    if not able:
        raise BundleError(f"{bundle.directory}: has no network in {precision}; it has {_networks_of(bundle)}")
    raise environment.MissingLibraryError(
        f"no runtime for this bundle is installed ({', '.join(able)}): `pip install onnxruntime`"
    )


def _stored_precision(bundle: Bundle, name: str, precision: str) -> str | None:
    """The precision of the network with which a runtime computes in `precision`; None if there is none."""
    networks = bundle.networks.get(LIBRARIES[name].format, {})
    if precision in LIBRARIES[name].casts and "fp32" in networks:
        return "fp32"
    return precision if precision in networks else None


def _networks_of(bundle: Bundle) -> str:
    return ", ".join(f"{name} {precision}" for name, group in bundle.networks.items() for precision in group)


def _load(name: str, stored: str, bundle: Bundle, precision: str, threads: int, device: str) -> Network:
    """Import only the runtime that is used."""
    if name == "onnxruntime":
        from ppfcos.deploy.runtimes.onnx_runtime import OnnxRuntime

        file = bundle.onnx_network(stored)
        return OnnxRuntime(file, threads, device, one_size=bundle.input.size is not None)
    if name == "openvino":
        from ppfcos.deploy.runtimes.openvino import OpenVinoRuntime

        return OpenVinoRuntime(bundle.onnx_network(stored), threads, device, precision)
    from ppfcos.deploy.runtimes.paddle_inference import PaddleInferenceRuntime

    return PaddleInferenceRuntime(
        *bundle.paddle_network(stored), bundle.output_names, threads, device, precision
    )
