"""The process and the machine: threads, math library, memory, imports of the frameworks, processor."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import functools
import importlib
import io
import logging
import os
import platform
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import TextIO

from ppfcos.errors import ConfigError, PPFCOSError, resource_error

CPU_INFO = Path("/proc/cpuinfo")
CGROUP = Path("/sys/fs/cgroup")

# Values of MKL_DEBUG_CPU_TYPE, which is undocumented. A code path that the processor lacks would end the
# process.
MKL_AVX2 = "5"
MKL_AVX512 = "7"
MKL_AVX512_FLAGS = frozenset({"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"})
MKL_AVX2_FLAGS = frozenset({"avx2", "fma"})

# Holds the number of threads that `configure_process` has set, so that a child process can tell it from the
# user's.
CHOSEN_THREADS = "PPFCOS_OMP_NUM_THREADS"

# Read before the slow imports, during which the launcher may end.
_PARENT = os.getppid()

# glog's levels: 0 information, 1 warnings, 2 errors.
GLOG_VARIABLES = {"GLOG_minloglevel": "2", "GLOG_v": "0"}

# Parameters of glibc's mallopt (malloc.h), and the variables with which a user sets them.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER_TRIM = -1
MALLOC_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")

# Without its own requirements, which exclude today's numpy, OpenCV and Python.
INSTALL_PADDLEDET = "pip install --no-deps paddledet==2.6.0"
_IS_CHECKOUT = (Path(__file__).parent.parent / "requirements.txt").is_file()
INSTALL_TRAIN = "pip install -r requirements.txt" if _IS_CHECKOUT else 'pip install "ppfcos[train]"'

OTHER_NUMPY = f"a package here was built for another numpy: {INSTALL_TRAIN}"
# Parts of import errors, and the command that fixes each.
FIXES = {
    "libGL.so": "apt-get install libgl1 libglib2.0-0",
    "libglib-2.0.so": "apt-get install libgl1 libglib2.0-0",
    "libgthread-2.0.so": "apt-get install libgl1 libglib2.0-0",
    "libgomp.so": "apt-get install libgomp1",
    "numpy.core.multiarray failed to import": OTHER_NUMPY,
    "numpy.dtype size changed": OTHER_NUMPY,
    "No module named 'paddle'": f"{INSTALL_TRAIN} (for GPUs see docs/install.md)",
    "No module named 'ppdet'": f"PaddleDetection is missing: {INSTALL_PADDLEDET}",
    "No module named 'ppfcos": None,
    "No module named": INSTALL_TRAIN,
}

_is_configured = False


class MissingLibraryError(PPFCOSError, ImportError):
    """A library that Paddle, PaddleDetection or OpenCV needs is missing."""


# Configuration of the process -------------------------------------------------------------------------------


def configure_process() -> None:
    """Configure threads, MKL code path, log level and allocator for fast training on a CPU.

    Every command calls it. Call it in a program of your own before Paddle is imported, which reads these
    settings once. Environment variables that the user has set are kept, and further calls change nothing.
    """
    global _is_configured
    for name, value in GLOG_VARIABLES.items():
        os.environ.setdefault(name, value)
    keep_freed_memory()
    if "paddle" in sys.modules:
        return
    _is_configured = True
    _set_threads(os.environ)
    code_path = _mkl_code_path(_cpu_info())
    if code_path is not None:
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", code_path)


@functools.cache
def warn_if_unconfigured() -> None:
    """Log one warning if Paddle runs on one thread because `configure_process` was not called."""
    if not _is_configured and os.environ.get("OMP_NUM_THREADS") == "1" and available_cores() > 1:
        # Not by warnings.warn(): the import of PaddleDetection disables all warnings.
        logging.getLogger(__name__).warning(
            "Paddle was imported without ppfcos.environment.configure_process(): on a CPU it uses one thread "
            "and may use slow code paths of MKL. Call it before the first import of Paddle."
        )


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next allocation.

    Each convolution on a CPU allocates and frees up to hundreds of megabytes. glibc maps such a block anew
    each time, and the kernel clears its pages, which can take longer than the convolution. The process then
    keeps its peak memory until it ends.

    Returns:
        False if the C library is not glibc, or the user has set one of MALLOC_VARIABLES.
    """
    if any(name in os.environ for name in MALLOC_VARIABLES) or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(M_MMAP_MAX, 0) and library.mallopt(M_TRIM_THRESHOLD, NEVER_TRIM))


def _set_threads(variables: MutableMapping[str, str]) -> None:
    """Divide the cores among the processes that `paddle.distributed.launch` started on this machine."""
    chosen_by_us = variables.get("OMP_NUM_THREADS", "") == variables.get(CHOSEN_THREADS)
    if "OMP_NUM_THREADS" in variables and not chosen_by_us and not _is_launchers_default(variables):
        return
    threads = max(1, available_cores() // local_processes(variables))
    variables["OMP_NUM_THREADS"] = variables[CHOSEN_THREADS] = str(threads)


def _is_launchers_default(variables: MutableMapping[str, str]) -> bool:
    """Whether Paddle's launcher, not the user, has set OMP_NUM_THREADS=1.

    The launcher imports Paddle, which sets it if it is unset, and passes it on. The environment that the
    launcher was started with shows whether the user had set it.
    """
    if "PADDLE_LOCAL_SIZE" not in variables or variables.get("OMP_NUM_THREADS") != "1":
        return False
    try:
        started_with = Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:
        return False
    return not any(entry.startswith(b"OMP_NUM_THREADS=") for entry in started_with.split(b"\0"))


def _mkl_code_path(cpu_info: str) -> str | None:
    """Return the MKL code path for an AMD processor described as in /proc/cpuinfo; None: MKL's choice."""
    vendor, flags = "", frozenset()
    for line in cpu_info.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "vendor_id":
            vendor = value.strip()
        elif key.strip() == "flags":
            flags = frozenset(value.split())
            break
    if vendor != "AuthenticAMD":
        return None
    if flags >= MKL_AVX512_FLAGS:
        return MKL_AVX512
    return MKL_AVX2 if flags >= MKL_AVX2_FLAGS else None


# Imports ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Hide what Paddle and PaddleDetection print and warn about while they are imported.

    If an import fails, all of it goes to the standard error. File descriptors are not redirected, so a crash
    of a library is always visible. In a configured process, PaddleDetection's loggers are set to warnings.

    Raises:
        MissingLibraryError: a system library or a package is missing; the message names the fix.
        ResourceError: the machine or a limit of the process does not allow the import.
        ConfigError: an environment variable aborts the import of OpenCV.
    """
    output, errors = io.StringIO(), io.StringIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            require_usable_opencv()
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
                import_users_of_zlib()
                yield
        except BaseException as error:
            known = resource_error(error)
            if known is not None:
                raise known from error
            fix = find_fix(error)
            if fix is not None:
                raise MissingLibraryError(f"{error}: {fix}") from error
            if sys.stderr is not None:
                sys.stderr.write(output.getvalue() + errors.getvalue())
                for each in caught:
                    message = warnings.formatwarning(each.message, each.category, each.filename, each.lineno)
                    sys.stderr.write(message)
            raise
        finally:
            restore_loggers({output: sys.stdout, errors: sys.stderr})


@contextlib.contextmanager
def hide_native_stdout() -> Iterator[None]:
    """Discard what native code prints to the standard output. The standard error stays, also in a crash."""
    with open(os.devnull, "wb") as nothing:
        try:
            sys.stdout.flush()
            saved = os.dup(1)
        except (OSError, ValueError, AttributeError):  # there is no standard output
            yield
            return
        os.dup2(nothing.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(saved, 1)
            os.close(saved)


def restore_loggers(streams: dict[io.StringIO, TextIO]) -> None:
    """Let loggers that were made during an import write to the standard streams."""
    for logger in logging.root.manager.loggerDict.values():
        for handler in getattr(logger, "handlers", ()):
            if getattr(handler, "stream", None) in streams:
                handler.setStream(streams[handler.stream])
    if _is_configured:
        for name in getattr(sys.modules.get("ppdet.utils.logger"), "logger_initialized", ()):
            logging.getLogger(name).setLevel(logging.WARNING)


def require_usable_opencv() -> None:
    """Check that no OPENCV_ variable aborts the process when OpenCV is imported, as OPENCV_TRACE=x does.

    Which variables OpenCV reads depends on its version. If one is set, another process tries the import.

    Raises:
        ConfigError: OpenCV aborts.
    """
    variables = sorted(
        f"{name}={value!r}" for name, value in os.environ.items() if name.startswith("OPENCV_")
    )
    is_python = os.path.basename(sys.executable or "").lower().startswith("python")  # False if embedded
    if not variables or "cv2" in sys.modules or not is_python:
        return
    done = subprocess.run([sys.executable, "-c", "import cv2"], capture_output=True, check=False)
    if done.returncode == -signal.SIGABRT:
        raise ConfigError(
            f"OpenCV cannot be imported with {', '.join(variables)} in the environment: "
            "unset the variable, or give it a value that OpenCV knows"
        )


def import_users_of_zlib() -> None:
    """Import zlib and its users before Paddle 2.6, whose own copy of zlib would make them crash."""
    if "paddle" in sys.modules:
        return
    for name in ("zlib", "cv2", "PIL.Image"):
        with contextlib.suppress(ModuleNotFoundError):  # reported by the import that needs it
            importlib.import_module(name)


@contextlib.contextmanager
def temporary_home() -> Iterator[None]:
    """Set HOME to a temporary folder, for libraries that write to it and fail if they cannot.

    The import of VisualDL writes to ~/.visualdl, Paddle's export to ~/.cache/paddle.
    """
    before = os.environ.get("HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HOME"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["HOME"]
            else:
                os.environ["HOME"] = before


def find_fix(error: BaseException) -> str | None:
    """Return the command that fixes an import error; None for other errors."""
    if not isinstance(error, (ImportError, ValueError)):  # ValueError: numpy's sizes differ
        return None
    return next((fix for name, fix in FIXES.items() if name in str(error)), None)


# The launcher and the machine -------------------------------------------------------------------------------


def local_processes(variables: MutableMapping[str, str] = os.environ) -> int:
    """Return the number of processes that `paddle.distributed.launch` started here; 1 without it."""
    text = variables.get("PADDLE_LOCAL_SIZE", "1")
    return max(1, int(text)) if text.isdigit() else 1


def launched_gpu(variables: MutableMapping[str, str] = os.environ) -> int:
    """Return the index of the GPU that `paddle.distributed.launch` gave to this process; 0 without it."""
    first = variables.get("FLAGS_selected_gpus", "").split(",")[0]
    return int(first) if first.isdigit() else 0


def launcher() -> int | None:
    """Return the pid of `paddle.distributed.launch` if it is the parent of this process, else None.

    The launcher makes each rank a session leader. A program that a shell starts is none, even with the
    launcher's variables set by hand.
    """
    launched = {"PADDLE_TRAINER_ID", "PADDLE_LOG_DIR"} <= os.environ.keys()
    return _PARENT if launched and hasattr(os, "getsid") and os.getsid(0) == os.getpid() else None


def available_cores() -> int:
    """Return the number of cores that this process may use; in a container often fewer than there are."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota_in_cores()
    return cores if quota is None else max(1, min(cores, round(quota)))


def _quota_in_cores() -> float | None:
    """Return the processor limit of the container, such as 2.0 cores; None without a limit."""
    try:
        if (CGROUP / "cpu.max").exists():
            limit, period = (CGROUP / "cpu.max").read_text().split()
        else:
            limit = (CGROUP / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (CGROUP / "cpu" / "cpu.cfs_period_us").read_text()
        return float(limit) / float(period) if float(limit) > 0 else None
    except (OSError, ValueError):  # no control groups, or "max", which is no limit
        return None


def _cpu_info() -> str:
    try:
        return CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def processor_name() -> str | None:
    """Return the name of the processor, such as `AMD EPYC 9R14`; None if the system does not tell."""
    for line in _cpu_info().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return None


def machine() -> str:
    """Return cores and processor, such as `2 cores of AMD EPYC`."""
    processor = processor_name() or platform.processor() or platform.machine()
    return f"{available_cores()} cores of {processor}"


def day_and_machine() -> str:
    """Return date and machine, such as `2026-11-20, 2 cores of AMD EPYC`."""
    return f"{datetime.date.today()}, {machine()}"
