"""Files and folders that are replaced as a whole."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading

import pytest

from ppfcos.errors import OutputError
from ppfcos.fileio import (
    is_abandoned,
    is_stream,
    new_token,
    replace_folder,
    replacing,
    require_writable_file,
    temporary_path,
)


def test_writers_of_one_file_do_not_meet(tmp_path):
    path, failures = tmp_path / "file", []

    def write(number: int) -> None:
        for _ in range(20):
            try:
                with replacing(path) as temporary, temporary.open("w") as file:
                    for _ in range(50):
                        file.write(f"{number}\n")
                        file.flush()
                assert len(set(path.read_text().split())) == 1
            except (AssertionError, OutputError) as error:
                failures.append(error)

    threads = [threading.Thread(target=write, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_only_errors_of_the_file_itself_name_it(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError, match="nowhere"), replacing(path):
        (tmp_path / "nowhere").read_bytes()
    with pytest.raises(FileNotFoundError, match="nowhere"), replacing(path) as temporary:
        shutil.copyfile(tmp_path / "nowhere", temporary)
    with pytest.raises(TimeoutError), replacing(path):
        raise TimeoutError(errno.ETIMEDOUT, "of a connection")
    with pytest.raises(OutputError, match=r"file cannot be written: No space left"), replacing(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OutputError, match=r"file cannot be written"), replacing(path) as temporary:
        (temporary / "below a file").write_text("")
    with pytest.raises(FileNotFoundError, match="nowhere"), replace_folder(tmp_path / "folder"):
        (tmp_path / "nowhere").read_bytes()
    with (
        pytest.raises(OutputError, match=r"folder cannot be written"),
        replace_folder(tmp_path / "folder") as f,
    ):
        (f / "a" / "b").write_text("")
    assert not list(tmp_path.iterdir())


def test_a_long_name_can_be_replaced(tmp_path):
    for name in ("x" * 255, "é" * 127):
        with replacing(tmp_path / name) as temporary:
            temporary.write_text("new")
        assert (tmp_path / name).read_text() == "new"


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")  # which does not exist yet
    for content in ("first", "second"):
        with replacing(tmp_path / "link") as temporary:
            temporary.write_text(content)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "there" / "file").read_text() == content
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match="loop cannot be written"), replacing(tmp_path / "loop"):
        pass
    (tmp_path / "folder").symlink_to("there")
    with replace_folder(tmp_path / "folder") as temporary:
        (temporary / "new").write_text("")
    assert os.readlink(tmp_path / "folder") == "there"
    assert [each.name for each in (tmp_path / "there").iterdir()] == ["new"]


def test_a_device_or_a_pipe_is_written_into(tmp_path):
    before = os.stat("/dev/null")
    with replacing("/dev/null") as temporary:
        temporary.write_text("nothing of it stays")
    assert (os.stat("/dev/null").st_ino, os.stat("/dev/null").st_mode) == (before.st_ino, before.st_mode)
    require_writable_file("/dev/null", "--json FILE")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OutputError, match="pipe cannot be written"), replacing(pipe) as temporary:
        temporary.write_text("nobody reads it")
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True)
    descriptor = os.open(pipe, os.O_WRONLY)  # the reader is there
    with replacing(pipe) as temporary:
        temporary.write_text("text " * 999)
    os.close(descriptor)
    assert reader.communicate()[0] == "text " * 999
    assert pipe.is_fifo()


@pytest.mark.parametrize("redirected", [False, True])
def test_standard_output_can_be_named(tmp_path, redirected):
    script = (
        "from ppfcos.fileio import replacing\n"
        "print('before', flush=True)\n"
        "with replacing('/dev/stdout') as temporary: temporary.write_text('content\\n')\n"
    )
    with (tmp_path / "out").open("w") as file:
        out = file if redirected else subprocess.PIPE
        done = subprocess.run([sys.executable, "-c", script], stdout=out, text=True, check=True)
    assert ((tmp_path / "out").read_text() if redirected else done.stdout) == "before\ncontent\n"


def test_what_is_no_file_is_refused_before_anything_is_written(tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        (tmp_path / "folder").mkdir()
        for name in ("socket", "folder"):
            with pytest.raises(OutputError, match=f"{name} cannot be written"), replacing(tmp_path / name):
                pytest.fail("the body was run")
    (tmp_path / "file").write_text("old")
    for path in ("/dev/null", tmp_path / "file"):
        with pytest.raises(OutputError, match="is not a folder"), replace_folder(path):
            pytest.fail("the body was run")
    assert is_stream("/dev/null") and (tmp_path / "file").read_text() == "old"


def test_only_what_dead_processes_left_is_abandoned(tmp_path):
    script = "from ppfcos.fileio import new_token; print(new_token(), flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    token = process.stdout.readline().strip()
    path = temporary_path(tmp_path / "file", token)
    assert not is_abandoned(path) and not is_abandoned(temporary_path(tmp_path / "file", new_token()))
    process.kill()
    process.communicate()
    assert is_abandoned(path)
    host, rest = token.split(".", 1)
    assert not is_abandoned(temporary_path(tmp_path / "file", f"{host}-2.{rest}"))
    assert not is_abandoned(tmp_path / "file.unfinished")
    random = rest.split(".")[-1]
    if os.path.exists("/proc/self/stat"):  # the number of a dead process is given to another one
        assert is_abandoned(temporary_path(tmp_path / "file", f"{host}.{os.getpid()}.1.{random}"))


@pytest.mark.parametrize("kill_before", range(1, 4))
def test_a_folder_whose_writer_was_killed_is_old_or_new_after_the_next(tmp_path, kill_before):
    target = tmp_path / "folder"
    (target / "sub").mkdir(parents=True)
    (target / "sub" / "file").write_text("old")
    (tmp_path / ".folder.more.unfinished").mkdir()  # of somebody else
    script = (
        "import os, signal, sys\n"
        "from ppfcos.fileio import replace_folder\n"
        "renamed = 0\n"
        "def replace(*names, rename=os.replace):\n"
        "    global renamed\n"
        "    renamed += 1\n"
        f"    if renamed == {kill_before}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    rename(*names)\n"
        "os.replace = replace\n"
        "with replace_folder(sys.argv[1]) as folder: (folder / 'file').write_text('new')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, target], check=False)
    assert done.returncode == (-signal.SIGKILL if kill_before < 3 else 0)
    with pytest.raises(ValueError), replace_folder(target):
        raise ValueError
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == ({"folder/sub/file"} if kill_before < 3 else {"folder/file"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".folder.more.unfinished", "folder"]
