"""Which runtime runs a bundle."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, NamedTuple

from ppfcos import environment
from ppfcos.deploy.bundle import ONNX, PADDLE, PRECISIONS, Bundle
from ppfcos.errors import BundleError, ConfigError

if TYPE_CHECKING:  # the names of the runtimes are wanted where nothing is run, such as in a command's help
    from ppfcos.deploy.networks import Network

AUTO = "auto"


class Library(NamedTuple):
    """A runtime as its users install it.

    Attributes:
        module: what is imported.
        form: of the network that it reads.
        casts: precisions in which it computes the fp32 network by itself.
    """

    module: str
    form: str
    casts: tuple[str, ...]


# In the order in which `auto` looks: the one that is light to install and quick to load goes first.
LIBRARIES = {
    "onnxruntime": Library("onnxruntime", ONNX, ()),
    "openvino": Library("openvino", ONNX, ("bf16",)),
    "paddle": Library("paddle", PADDLE, ("bf16",)),
}
RUNTIMES = (AUTO, *LIBRARIES)


def open_network(bundle: Bundle, runtime: str, precision: str, threads: int | None, device: str) -> Network:
    """Load a bundle's network.

    Args:
        bundle: that it is of.
        runtime: one of RUNTIMES; `auto` takes the first of LIBRARIES that is installed and for which the
            bundle has a network.
        precision: one of PRECISIONS.
        threads: threads of the CPU; None takes OMP_NUM_THREADS, else every core that this process may use.
        device: `auto`, `cpu`, `gpu`, or a name that the runtime knows.

    Raises:
        ConfigError: there is no such runtime or precision.
        BundleError: the bundle has no such network, or it cannot be loaded.
        MissingLibraryError: the runtime is not installed.
        DeviceError: the device is not there.
    """
    name = chosen_runtime(bundle, runtime, precision)
    stored = _stored_precision(bundle, name, precision)
    if stored is None:
        raise BundleError(
            f"{bundle.directory}: has no network for {name} in {precision}; it has {_networks_of(bundle)}"
        )
    return _load(name, stored, bundle, precision, threads or default_threads(), device)


def chosen_runtime(bundle: Bundle, runtime: str, precision: str) -> str:
    """The runtime that `open_network` takes.

    Args:
        bundle: to be run.
        runtime: one of RUNTIMES.
        precision: one of PRECISIONS.

    Returns:
        `runtime` itself, which need not be able to run the bundle, or what `auto` stands for here.

    Raises:
        ConfigError: there is no such runtime or precision.
        BundleError: no runtime can run the bundle in this precision.
        MissingLibraryError: none of those that can is installed.
    """
    for value, known, what in ((runtime, RUNTIMES, "runtime"), (precision, PRECISIONS, "precision")):
        if value not in known:
            raise ConfigError(f"{what} {value!r} is not known; take one of {', '.join(known)}")
    return _first_installed(bundle, precision) if runtime == AUTO else runtime


def default_threads() -> int:
    """OMP_NUM_THREADS if it is a number, else the cores that this process may use."""
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
        f"no runtime for this bundle is installed: `pip install onnxruntime` ({', '.join(able)} would do)"
    )


def _stored_precision(bundle: Bundle, name: str, precision: str) -> str | None:
    """The precision of the bundle's network with which a runtime computes in `precision`; None without."""
    there = bundle.networks.get(LIBRARIES[name].form, {})
    if precision in LIBRARIES[name].casts and "fp32" in there:
        return "fp32"
    return precision if precision in there else None


def _networks_of(bundle: Bundle) -> str:
    return ", ".join(f"{form} {precision}" for form, found in bundle.networks.items() for precision in found)


def _load(name: str, stored: str, bundle: Bundle, precision: str, threads: int, device: str) -> Network:
    """Each runtime's file imports its library, so none is imported before it is wanted."""
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
