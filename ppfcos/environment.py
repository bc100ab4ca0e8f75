"""What a figure was measured on."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import functools
import importlib
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
from typing import BinaryIO

from ppfcos.errors import ConfigError, PPFCOSError, resource_error

CPU_INFO = Path("/proc/cpuinfo")
CGROUP = Path("/sys/fs/cgroup")

# The values by which Intel's library names its code paths. Both are undocumented; a path that the processor
# lacks would end the process, so each is taken only where the processor has the instructions.
MKL_AVX2 = "5"
MKL_AVX512 = "7"
MKL_AVX512_FLAGS = frozenset({"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"})
MKL_AVX2_FLAGS = frozenset({"avx2", "fma"})

# Remembers the number of threads that we chose, so that a child process can tell it from one that the user
# chose.
CHOSEN_THREADS = "PPFCOS_OMP_NUM_THREADS"

# Taken before the imports that take seconds: the launcher may be gone behind them.
_PARENT = os.getppid()

# glog prints from this level on: 0 information, 1 warnings, 2 errors.
GLOG_VARIABLES = {"GLOG_minloglevel": "2", "GLOG_v": "0"}

# Parameters of glibc's mallopt (malloc.h), and the variables by which a user decides instead.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER_TRIM = -1
MALLOC_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")

NEWEST_PYTHON = (3, 11)  # for which there are wheels of the numpy that PaddleDetection wants

OTHER_NUMPY = "a package here was built for another numpy: pip install -r requirements.txt"
# What a bare machine lacks or has in another version, as the import error names it, and the cure.
CURES = {
    "libGL.so": "apt-get install libgl1 libglib2.0-0",
    "libglib-2.0.so": "apt-get install libgl1 libglib2.0-0",
    "libgthread-2.0.so": "apt-get install libgl1 libglib2.0-0",
    "libgomp.so": "apt-get install libgomp1",
    "numpy.core.multiarray failed to import": OTHER_NUMPY,
    "numpy.dtype size changed": OTHER_NUMPY,
    "No module named 'paddle'": "pip install -r requirements.txt (see README.md for GPUs)",
    "No module named 'ppfcos": None,
    "No module named": "pip install -r requirements.txt",
}


# What a standard stream raises that is closed, or that this process does not have.
NO_STREAM = (OSError, ValueError, AttributeError)


class MissingLibraryError(PPFCOSError, ImportError):
    """A library that Paddle, PaddleDetection or OpenCV needs is not on this machine."""


def prepare() -> None:
    """Set the number of threads, the math library's code path and the log level where the user has not.

    Safe to call again. Once Paddle is imported, its threads and its math library are settled and stay as they
    are.
    """
    for name, value in GLOG_VARIABLES.items():
        os.environ.setdefault(name, value)
    if "paddle" in sys.modules:
        return
    _set_threads(os.environ)
    code_path = _mkl_code_path(_cpu_info())
    if code_path is not None:
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", code_path)


def require_usable_opencv() -> None:
    """See that no OPENCV_ variable aborts the process when OpenCV is imported, as OPENCV_TRACE=x does.

    Which variables OpenCV reads depends on its version. So another process tries the import, but only where
    such a variable is set.

    Raises:
        ConfigError: OpenCV aborts.
    """
    variables = sorted(
        f"{name}={value!r}" for name, value in os.environ.items() if name.startswith("OPENCV_")
    )
    is_python = os.path.basename(sys.executable or "").lower().startswith("python")  # not so where embedded
    if not variables or "cv2" in sys.modules or not is_python:
        return
    done = subprocess.run([sys.executable, "-c", "import cv2"], capture_output=True, check=False)
    if done.returncode == -signal.SIGABRT:
        raise ConfigError(
            f"OpenCV cannot be imported with {', '.join(variables)} in the environment: "
            "unset the variable, or give it a value that OpenCV knows"
        )


def keep_freed_memory() -> bool:
    """Have the C library keep the memory that Paddle frees for what Paddle asks for next.

    On a CPU every convolution takes a work space of up to hundreds of megabytes and frees it. glibc maps such
    a block anew each time, and the system clears it page by page, which can take longer than the arithmetic
    of the convolution. The price is that a process holds on to the most memory that it ever needed.

    Returns:
        Whether it was done: on Linux with glibc, unless the user has set one of MALLOC_VARIABLES.
    """
    if any(name in os.environ for name in MALLOC_VARIABLES) or not _has_glibc():
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(M_MMAP_MAX, 0) and library.mallopt(M_TRIM_THRESHOLD, NEVER_TRIM))


def _has_glibc() -> bool:
    try:
        return "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (AttributeError, OSError, ValueError):  # another system, or another C library
        return False


def _set_threads(variables: MutableMapping[str, str]) -> None:
    """Share the cores out among the processes that `paddle.distributed.launch` started on this machine."""
    chosen_by_us = variables.get("OMP_NUM_THREADS", "") == variables.get(CHOSEN_THREADS)
    if "OMP_NUM_THREADS" in variables and not chosen_by_us and not _is_launchers_default(variables):
        return
    threads = max(1, available_cores() // local_processes(variables))
    variables["OMP_NUM_THREADS"] = variables[CHOSEN_THREADS] = str(threads)


def available_cores() -> int:
    """Count the cores that this process may use, in a container often fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota_in_cores()
    return cores if quota is None else max(1, min(cores, round(quota)))


def _quota_in_cores() -> float | None:
    """Read the limit of the container's processor time, such as 2.0 cores; None without a limit."""
    try:
        if (CGROUP / "cpu.max").exists():
            limit, period = (CGROUP / "cpu.max").read_text().split()
        else:
            limit = (CGROUP / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (CGROUP / "cpu" / "cpu.cfs_period_us").read_text()
        return float(limit) / float(period) if float(limit) > 0 else None
    except (OSError, ValueError):  # no control groups, or "max", which is no limit
        return None


def local_processes(variables: MutableMapping[str, str] = os.environ) -> int:
    """Count the processes that `paddle.distributed.launch` started on this machine; 1 without it."""
    text = variables.get("PADDLE_LOCAL_SIZE", "1")
    return max(1, int(text)) if text.isdigit() else 1


def launched_gpu(variables: MutableMapping[str, str] = os.environ) -> int:
    """The number of the GPU that `paddle.distributed.launch` gave to this process; 0 without it."""
    first = variables.get("FLAGS_selected_gpus", "").split(",")[0]
    return int(first) if first.isdigit() else 0


def _is_launchers_default(variables: MutableMapping[str, str]) -> bool:
    """Whether the one thread asked for is what Paddle wrote into the environment of its own launcher.

    The launcher imports Paddle, which sets OMP_NUM_THREADS=1 where the user set nothing, and hands it on. The
    environment with which the launcher itself was started tells the two apart, where the system shows it.
    """
    if "PADDLE_LOCAL_SIZE" not in variables or variables.get("OMP_NUM_THREADS") != "1":
        return False
    try:
        started_with = Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:
        return False
    return not any(entry.startswith(b"OMP_NUM_THREADS=") for entry in started_with.split(b"\0"))


def _cpu_info() -> str:
    """Read the system's description of the processors; empty where there is none."""
    try:
        return CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def processor_name() -> str | None:
    """Name the processor, such as `AMD EPYC 9R14`; None where the system does not tell."""
    for line in _cpu_info().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return None


def _mkl_code_path(cpu_info: str) -> str | None:
    """Choose the MKL code path for the processor that /proc/cpuinfo describes; None leaves it to MKL."""
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


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Keep what Paddle and PaddleDetection print while they are imported off the screen.

    Everything is shown after all, on the standard error, if the import fails. PaddleDetection's loggers are
    set to warnings and above.

    Raises:
        MissingLibraryError: a system library or a package is missing; the message names the command that
            brings it.
        ResourceError: the machine or a limit of the process does not let it be imported.
        ConfigError: a variable of the environment aborts the import of OpenCV.
    """
    with tempfile.TemporaryFile() as record, warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = functools.partial(_record_warning, record)
        try:
            require_usable_opencv()
            with _output_to(record):
                import_users_of_zlib()
                yield
        except BaseException as error:
            known = resource_error(error)
            if known is not None:
                raise known from error
            cure = _cure(error)
            if cure is not None:
                raise MissingLibraryError(f"{error}: {cure}") from error
            record.seek(0)
            sys.stderr.write(record.read().decode(errors="replace"))
            raise
        finally:
            _quieten_loggers()


@contextlib.contextmanager
def temporary_home() -> Iterator[None]:
    """Give VisualDL a home directory while it is imported.

    Its import writes files to ~/.visualdl, which only its server reads, and fails where it cannot.
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


@contextlib.contextmanager
def _output_to(record: BinaryIO) -> Iterator[None]:
    """Send the standard output and error of this process, its C++ libraries included, into a file."""
    saved = {}
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        with contextlib.suppress(*NO_STREAM):
            stream.flush()
            saved[descriptor] = os.dup(descriptor)
            os.dup2(record.fileno(), descriptor)
    try:
        yield
    finally:
        for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
            with contextlib.suppress(*NO_STREAM):
                stream.flush()
            if descriptor in saved:
                os.dup2(saved[descriptor], descriptor)
                os.close(saved[descriptor])


def _record_warning(
    record: BinaryIO,
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: str | None = None,
) -> None:
    """Take the place of warnings.showwarning, whose arguments these are."""
    record.write(warnings.formatwarning(message, category, filename, lineno, line).encode())
    record.flush()


def import_users_of_zlib() -> None:
    """Import zlib and its users before Paddle, whose 2.6 has a zlib of its own that makes theirs crash."""
    if "paddle" in sys.modules:
        return
    for name in ("zlib", "cv2", "PIL.Image"):
        with contextlib.suppress(ModuleNotFoundError):  # the import that needs it says so
            importlib.import_module(name)


def _cure(error: BaseException) -> str | None:
    """Find the command that brings what an import error misses; None where it is some other error."""
    if not isinstance(error, (ImportError, ValueError)):  # the latter of a numpy that has other sizes
        return None
    cure = next((cure for name, cure in CURES.items() if name in str(error)), None)
    if cure is not None and "pip " in cure and sys.version_info[:2] > NEWEST_PYTHON:
        return f"PaddleDetection is not for this Python: make an environment with 3.9 to 3.11, then {cure}"
    return cure


def _quieten_loggers() -> None:
    """Set every logger that PaddleDetection has made so far to warnings and above."""
    logger_module = sys.modules.get("ppdet.utils.logger")
    for name in getattr(logger_module, "logger_initialized", ()):
        logging.getLogger(name).setLevel(logging.WARNING)


def launcher() -> int | None:
    """The pid of `paddle.distributed.launch`, if it is the parent of this process; else None.

    The launcher makes each rank the leader of a session. A program that a shell starts is not one, even where
    the launcher's variables are set by hand.
    """
    started = {"PADDLE_TRAINER_ID", "PADDLE_LOG_DIR"} <= os.environ.keys()
    return _PARENT if started and hasattr(os, "getsid") and os.getsid(0) == os.getpid() else None


def machine() -> str:
    """Such as `2 cores of AMD EPYC`; the cores are those that this process may use."""
    processor = processor_name() or platform.processor() or platform.machine()
    return f"{available_cores()} cores of {processor}"


def day_and_machine() -> str:
    """Such as `2026-11-20, 2 cores of AMD EPYC`."""
    return f"{datetime.date.today()}, {machine()}"
