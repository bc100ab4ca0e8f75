"""The configuration of the process, and the imports of Paddle and PaddleDetection."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from ppfcos import environment

SHOW = (
    "import json, os; "
    "print(json.dumps({name: os.environ.get(name) for name in "
    "('OMP_NUM_THREADS', 'MKL_DEBUG_CPU_TYPE', 'GLOG_minloglevel', 'PPFCOS_OMP_NUM_THREADS')}))"
)
CONFIGURE = "from ppfcos import environment; environment.configure_process()"
SET_BY_US = ("OMP_NUM_THREADS", "PPFCOS_OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE", "GLOG_minloglevel", "GLOG_v")


def run(root, code, **variables):
    """Run Python code in a process whose environment holds nothing of ours but `variables`."""
    inherited = {name: value for name, value in os.environ.items() if name not in SET_BY_US}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, "PYTHONPATH": str(root), **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


def environment_after(root, code, **variables):
    result = run(root, f"{code}; {SHOW}", **variables)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def cores():
    return environment.available_cores()


def test_importing_the_package_changes_nothing_in_the_process(root):
    result = run(
        root,
        "import os, sys\n"
        "variables, finders = dict(os.environ), list(sys.meta_path)\n"
        "import ppfcos\n"
        "assert os.environ == variables and sys.meta_path == finders\n"
        "print(sorted({'paddle', 'ppdet', 'numpy', 'cv2', 'yaml', 'PIL', 'matplotlib'} & set(sys.modules)))",
    )
    assert result.stdout == "[]\n", result.stderr


@pytest.mark.skipif(environment.available_cores() == 1, reason="one thread is all that there is")
@pytest.mark.parametrize(("configure", "warnings"), [("", 1), (f"{CONFIGURE}; ", 0)])
def test_a_model_of_an_unconfigured_process_warns_once(root, configure, warnings):
    create = "from ppdet.core.workspace import create; create('PPFCOS'); create('PPFCOS')"
    result = run(root, f"{configure}import ppfcos.modeling; {create}")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("without ppfcos.environment.configure_process()") == warnings


# Threads -------------------------------------------------------------------------------------------------


def test_threads_are_the_cores_that_this_process_may_use(root):
    assert environment_after(root, CONFIGURE)["OMP_NUM_THREADS"] == str(cores())
    if hasattr(os, "sched_setaffinity"):
        one_core = f"import os; os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}}); {CONFIGURE}"
        assert environment_after(root, one_core)["OMP_NUM_THREADS"] == "1"


def test_processes_on_one_machine_share_its_cores(root, monkeypatch):
    shared = environment_after(root, CONFIGURE, PADDLE_LOCAL_SIZE="2")
    assert shared["OMP_NUM_THREADS"] == str(max(1, cores() // 2))
    monkeypatch.setattr(environment, "available_cores", lambda: 12)
    for processes, threads in (("1", "12"), ("4", "3"), ("5", "2"), ("64", "1"), ("", "12"), ("x", "12")):
        variables = {"PADDLE_LOCAL_SIZE": processes}
        environment._set_threads(variables)
        assert variables["OMP_NUM_THREADS"] == threads


def test_a_child_process_chooses_anew_what_its_parent_chose_for_itself(root):
    chosen = environment_after(
        root, CONFIGURE, OMP_NUM_THREADS="64", PPFCOS_OMP_NUM_THREADS="64", PADDLE_LOCAL_SIZE="1"
    )
    assert chosen["OMP_NUM_THREADS"] == str(cores())


@pytest.mark.parametrize(
    ("content", "limit"),
    [("max 100000\n", None), ("150000 100000\n", 1.5), ("800000 100000\n", 8.0), ("nonsense\n", None)],
)
def test_limit_of_a_container(tmp_path, monkeypatch, content, limit):
    monkeypatch.setattr(environment, "CGROUP", tmp_path)
    assert environment._quota_in_cores() is None
    (tmp_path / "cpu.max").write_text(content)
    assert environment._quota_in_cores() == limit
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)), raising=False)
    assert environment.available_cores() == {None: 4, 1.5: 2, 8.0: 4}[limit]


@pytest.mark.parametrize(("quota", "limit"), [("-1", None), ("300000", 3.0)])
def test_limit_of_an_older_container(tmp_path, monkeypatch, quota, limit):
    monkeypatch.setattr(environment, "CGROUP", tmp_path)
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert environment._quota_in_cores() == limit


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="the system does not show environments")
@pytest.mark.parametrize(("by_user", "threads"), [(None, None), ("1", "1")])
def test_threads_under_paddles_launcher(root, tmp_path, by_user, threads):
    """The launcher hands one thread on where the user set nothing; what the user set stays."""
    (tmp_path / "show.py").write_text(f"{CONFIGURE}\n{SHOW}\n")
    inherited = {name: value for name, value in os.environ.items() if name not in SET_BY_US}
    subprocess.run(
        [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "1", "show.py"],
        env={
            **inherited,
            "PYTHONPATH": str(root),
            **({"OMP_NUM_THREADS": by_user} if by_user else {}),
        },
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=120,
    )
    [line] = (tmp_path / "log" / "workerlog.0").read_text().splitlines()
    shown = json.loads(line)
    assert shown["OMP_NUM_THREADS"] == (threads or str(cores()))
    assert shown["PPFCOS_OMP_NUM_THREADS"] == (None if by_user else str(cores()))


# The math library ----------------------------------------------------------------------------------------


AVX2 = "fpu sse4_2 avx fma avx2"
AVX512 = AVX2 + " avx512f avx512dq avx512cd avx512bw avx512vl"


@pytest.mark.parametrize(
    ("vendor", "flags", "code_path"),
    [
        ("AuthenticAMD", AVX512, "7"),
        ("AuthenticAMD", AVX512.replace("avx512dq ", ""), "5"),  # a part of AVX-512 is not enough
        ("AuthenticAMD", AVX2, "5"),
        ("AuthenticAMD", "fpu sse4_2 avx", None),
        ("GenuineIntel", AVX512, None),
        ("HygonGenuine", AVX512, None),
    ],
)
def test_code_path_of_the_math_library(vendor, flags, code_path):
    core = f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: of some kind\nflags\t\t: {flags}\n\n"
    assert environment._mkl_code_path(core * 2) == code_path


def test_code_path_is_left_alone_where_the_processor_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "CPU_INFO", tmp_path / "none")
    assert environment._mkl_code_path(environment._cpu_info()) is None
    assert environment._mkl_code_path("processor: 0\nBogoMIPS: 50.00\nFeatures: fp asimd\n") is None


# The user's own settings ---------------------------------------------------------------------------------


def test_nothing_is_set_over_the_users_values(root):
    theirs = {"OMP_NUM_THREADS": "3", "MKL_DEBUG_CPU_TYPE": "4", "GLOG_minloglevel": "0"}
    after = environment_after(root, CONFIGURE, **theirs)
    assert after == {**theirs, "PPFCOS_OMP_NUM_THREADS": None}
    empty = environment_after(root, CONFIGURE, OMP_NUM_THREADS="", MKL_DEBUG_CPU_TYPE="")
    assert (empty["OMP_NUM_THREADS"], empty["MKL_DEBUG_CPU_TYPE"]) == ("", "")


def test_further_calls_change_nothing(root):
    once = environment_after(root, CONFIGURE)
    assert environment_after(root, f"{CONFIGURE}; environment.configure_process()") == once


def test_after_paddle_nothing_is_changed_that_paddle_has_read(monkeypatch):
    assert "paddle" in sys.modules
    for name in ("OMP_NUM_THREADS", "PPFCOS_OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE"):
        monkeypatch.delenv(name, raising=False)
    environment.configure_process()
    assert not {"OMP_NUM_THREADS", "PPFCOS_OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE"} & set(os.environ)


# Quiet imports -------------------------------------------------------------------------------------------


def test_imports_print_nothing_and_streams_work_afterwards(root):
    result = run(
        root,
        "import sys, os, logging\n"
        f"{CONFIGURE}\n"
        "with environment.quiet_imports():\n"
        "    import ppfcos.paddledetection, ppdet.engine\n"
        "print('out'); os.write(1, b'raw out\\n')\n"
        "print('err', file=sys.stderr); os.write(2, b'raw err\\n')\n"
        "from ppdet.utils.logger import logger_initialized\n"
        "assert logger_initialized\n"
        "assert all(logging.getLogger(n).level == logging.WARNING for n in logger_initialized)\n"
        "logging.getLogger('ppdet.engine').warning('from a logger')\n",
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert sorted(lines)[-2:] == ["out", "raw out"] and len(lines) == 3
    assert "from a logger" in result.stdout
    assert sorted(result.stderr.split("\n")) == ["", "err", "raw err"]


def test_a_crash_during_an_import_is_visible(root, tmp_path):
    (tmp_path / "crash.py").write_text("import os\nos.abort()\n")
    result = run(
        root,
        f"import faulthandler, sys; sys.path.insert(0, {str(tmp_path)!r}); faulthandler.enable()\n"
        "from ppfcos.environment import quiet_imports\n"
        "with quiet_imports():\n"
        "    import crash\n",
    )
    assert result.returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in result.stderr and "crash.py" in result.stderr


def test_an_import_that_fails_prints_all_output(root, tmp_path):
    (tmp_path / "talker.py").write_text(
        "import os, warnings\n"
        "print('said on stdout')\n"
        "os.write(2, b'said by a library\\n')\n"
        "warnings.warn('said as a warning')\n"
        "raise RuntimeError('the reason')\n"
    )
    result = run(
        root,
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from ppfcos.environment import quiet_imports\n"
        "with quiet_imports():\n"
        "    import talker\n",
    )
    assert result.returncode == 1
    assert result.stdout == ""
    for said in ("said on stdout", "said by a library", "said as a warning", "RuntimeError: the reason"):
        assert said in result.stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ImportError("libGL.so.1: cannot open shared object file: No such file or directory"),
            "No such file or directory: apt-get install libgl1 libglib2.0-0",
        ),
        (ImportError("libgthread-2.0.so.0: cannot open …"), "apt-get install libgl1 libglib2.0-0"),
        (ImportError("libgomp.so.1: cannot open …"), "apt-get install libgomp1"),
        (ModuleNotFoundError("No module named 'paddle'"), "pip install -r requirements.txt"),
        (ModuleNotFoundError("No module named 'tqdm'"), "pip install -r requirements.txt"),
        (ModuleNotFoundError("No module named 'ppdet'"), "pip install --no-deps paddledet==2.6.0"),
        # As OpenCV and pycocotools say it where there is a numpy 2.
        (ImportError("numpy.core.multiarray failed to import"), "built for another numpy: pip install"),
        (
            ValueError("numpy.dtype size changed, may indicate binary incompatibility. Expected 96, got 88"),
            "built for another numpy: pip install -r requirements.txt",
        ),
    ],
)
def test_a_missing_library_is_reported_in_one_line(capfd, error, said):
    with pytest.raises(environment.MissingLibraryError) as caught, environment.quiet_imports():
        print("noise")
        raise error
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert isinstance(caught.value, ImportError)
    assert "noise" not in "".join(capfd.readouterr())


def test_other_errors_pass_through_as_they_are():
    with pytest.raises(ImportError, match="cannot import name 'x'") as caught, environment.quiet_imports():
        raise ImportError("cannot import name 'x' from 'y'")
    assert type(caught.value) is ImportError
    with pytest.raises(ModuleNotFoundError) as caught, environment.quiet_imports():
        raise ModuleNotFoundError("No module named 'ppfcos.misspelt'")
    assert type(caught.value) is ModuleNotFoundError
    with pytest.raises(KeyboardInterrupt), environment.quiet_imports():
        raise KeyboardInterrupt


def test_a_process_without_standard_streams_can_import_too(root, tmp_path):
    witness = tmp_path / "done"
    result = run(
        root,
        "import os, sys\n"
        "os.close(1); os.close(2); sys.stdout = sys.stderr = None\n"
        "from ppfcos.environment import quiet_imports\n"
        "with quiet_imports():\n"
        "    import json\n"
        f"open({str(witness)!r}, 'w').close()\n",
    )
    assert result.returncode == 0
    assert witness.exists()


KEEPING = """
import ctypes, resource, sys
from ppfcos import environment
kept = environment.keep_freed_memory() if sys.argv[1] == "keep" else None
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
size = 100 << 20

def use():
    block = library.malloc(size)
    ctypes.memset(block, 1, size)
    library.free(block)

use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_freed_memory_is_kept_unless_the_user_decides(root):
    """Page faults tell: the system has to hand out a block's pages once, or every time anew."""

    def run(argument, **variables):
        environment_of_child = {**os.environ, **variables}
        done = subprocess.run(
            [sys.executable, "-c", KEEPING, argument],
            cwd=root,
            env=environment_of_child,
            capture_output=True,
            text=True,
            check=True,
        )
        kept, faults = done.stdout.split()
        return kept, int(faults)

    assert run("leave")[1] > 200  # 5 x 100 MiB, in pages of 4 KiB to 2 MiB
    kept, faults = run("keep")
    assert kept == "True" and faults < 50
    kept, faults = run("keep", MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")
    assert kept == "False" and faults > 200
