"""The program `ppfcos`: its words, its complaints, what shells complete, and how fast it starts."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.terminal import run_on_terminal

from ppfcos.cli import main as program
from ppfcos.cli import train
from ppfcos.config import load_config
from ppfcos.config.show import resolved_config

CONFIG = "configs/fcos_r18_bccd.yml"


def ppfcos(root, *words, **options):
    command = [sys.executable, "-m", "ppfcos", *words]
    return subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=120, check=False, **options
    )


def test_help_lists_every_command_and_needs_nothing(root):
    script = (
        "import sys; from ppfcos.cli.main import main; code = main(['--help']);"
        "heavy = {'paddle', 'ppdet', 'cv2', 'numpy', 'yaml'} & set(sys.modules);"
        "print(sorted(heavy)); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stderr == ""
    *usage, heavy = done.stdout.splitlines()
    assert heavy == "[]"
    listed = [line.split()[0] for line in usage if line.startswith("  ")]
    assert listed == list(program.COMMANDS)


@pytest.mark.parametrize("name", program.COMMANDS)
def test_every_command_explains_itself(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/ppfcos", name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        program.main()
    text = capsys.readouterr().out
    assert text.startswith(f"usage: ppfcos {name} ") and "example:" in text


@pytest.mark.parametrize("name", program.COMMANDS)
@pytest.mark.parametrize("columns", [60, 100])
def test_help_is_as_wide_as_the_terminal(name, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit, match="0"):
        program.main([name, "--help"])
    text, _, _ = capsys.readouterr().out.partition("example:")  # which is to be copied, line by line
    said = text.split("\n\n")[1].splitlines()
    assert max(map(len, said)) <= columns
    assert all(len(line) + len(after.split()[0]) > columns - 3 for line, after in zip(said, said[1:]))


@pytest.mark.parametrize("columns", [50, 100])
def test_the_list_of_commands_is_as_wide_as_the_terminal(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert program.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert columns - 12 < max(map(len, lines)) <= columns


def test_the_files_in_tools_are_the_same_commands(root):
    for command in program.COMMANDS.values():
        file = root / "tools" / f"{command.module}.py"
        assert command.module in ("configs", "environment", "completion") or (
            f"from ppfcos.cli.{command.module} import main" in file.read_text()
        )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["trian"], "there is no command trian; did you mean 'train'?"),
        (["exprot", "-c", CONFIG], "there is no command exprot; did you mean 'export'?"),
        (["-c", CONFIG], "there is no option -c; ppfcos COMMAND comes first"),
        (["train", "-c", CONFIG, "--evla"], "there is no option --evla; did you mean '--eval'?"),
        (["train", "-c", CONFIG, "--amb=1"], "there is no option --amb; did you mean '--amp'?"),
        (["eval", "-c", CONFIG, "stray"], "unexpected argument stray"),
        (["train", "-c", "configs/fcos_r50_fpn_1x_cooc.yml"],
         "configs/fcos_r50_fpn_1x_cooc.yml: there is no such configuration file; "
         "did you mean 'fcos_r50_fpn_1x_coco.yml'?"),
        (["train"], "the following arguments are required: -c/--config"),
        (["infer", "--show_config"], "--show_config shows a configuration: name it with -c FILE"),
    ],
)  # fmt: skip
def test_a_misspelt_line_is_one_line_of_error(words, complaint, root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    try:
        code = program.main(words)
    except SystemExit as end:
        code = end.code
    assert code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {complaint}")


@pytest.mark.parametrize("words", [["--help"], ["train", "-c", CONFIG, "--show-config"]])
def test_a_reader_that_leaves_early_is_no_error(root, words):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "ppfcos", *words]
    done = subprocess.run(command, cwd=root, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_version(root):
    done = ppfcos(root, "--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "ppfcos")


# The configuration and where it comes from


def test_shown_configurations_say_what_is_loaded(root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    overrides = ["epoch=3", "LearningRate.schedulers.1.steps=7", "TrainReader.accumulate_steps=2"]
    assert train.main(["-c", CONFIG, "--show-config", "-o", *overrides]) == 0
    text = capsys.readouterr().out
    loaded = resolved_config(load_config(CONFIG, overrides))
    shown = yaml.safe_load(text)
    assert {key: shown[key] for key in loaded if key != "filename"} == {
        key: value for key, value in loaded.items() if key != "filename"
    }
    origins = [line.rpartition("# ") for line in text.splitlines() if "  # " in line]
    assert len(origins) > 80
    for written, _, origin in origins:
        key = written.split(":")[0].strip()
        if origin == "-o":
            assert key in ("epoch", "accumulate_steps")
        elif origin != "default":
            file, number = origin.split(":")
            line = (root / file).read_text().splitlines()[int(number) - 1]
            assert line.strip().removeprefix("- ").startswith((f"{key}:", "!")) or f"{key}:" in line


# Completion


@pytest.fixture(scope="module")
def completion(root, tmp_path_factory):
    """The script for a shell, which must be there."""

    def write(shell: str) -> Path:
        if shutil.which(shell) is None:
            pytest.skip(f"{shell}, whose completion this is, is not installed: apt-get install {shell}")
        script = tmp_path_factory.mktemp("completion") / shell
        script.write_text(ppfcos(root, "completion", shell).stdout)
        return script

    return functools.cache(write)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["ppfcos", "tr"], {"train"}),
        (["ppfcos", "convert-"], {"convert-weights", "convert-data", "convert-config"}),
        (["ppfcos", "train", "--prof"], {"--profile"}),
        (["ppfcos", "convert-data", "--to", "vo"], {"voc"}),
        (["ppfcos", "train", "-c", "configs/fcos_r18"], {CONFIG}),
        (["ppfcos", "benchmark", "configs", "benchm"], {"benchmarks"}),
    ],
)
def test_bash_completes(root, completion, typed, expected):
    words = " ".join(f"'{word}'" for word in typed)
    asked = (
        f"source {completion('bash')}; COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}; "
        '_shtab_ppfcos ppfcos "${COMP_WORDS[-1]}"; printf \'%s\\n\' "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", asked], cwd=root, capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) == expected, done.stderr


# Types a line and the tabulator as soon as zsh shows its first prompt, and leaves.
ZSHRC = """
autoload -Uz compinit
compinit -D -u
eval "$(<{script})"
type_and_leave() {{
  BUFFER=$TYPED CURSOR=$#TYPED
  zle complete-word
  print -r -- "$BUFFER" > $WRITTEN
  BUFFER=exit
  zle accept-line
}}
zle -N zle-line-init type_and_leave
"""


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("ppfcos tr", "ppfcos train"),
        ("ppfcos convert-w", "ppfcos convert-weights"),
        ("ppfcos train --prof", "ppfcos train --profile"),
        ("ppfcos convert-data --to vo", "ppfcos convert-data --to voc"),
        ("ppfcos train -c configs/fcos_r18", f"ppfcos train -c {CONFIG}"),
        ("ppfcos benchmark configs benchm", "ppfcos benchmark configs benchmarks/"),
    ],
)
def test_zsh_completes(root, completion, tmp_path, monkeypatch, typed, completed):
    (tmp_path / ".zshrc").write_text(ZSHRC.format(script=completion("zsh")))
    monkeypatch.chdir(root)
    variables = {"ZDOTDIR": str(tmp_path), "TYPED": typed, "WRITTEN": str(tmp_path / "line")}
    code, screen = run_on_terminal(["zsh", "-d", "-i"], **variables)
    assert code == 0, screen
    assert (tmp_path / "line").read_text().rstrip() == completed, screen


# The report for bug reports


def test_the_report_names_versions_and_devices(root):
    done = ppfcos(root, "environment")
    assert done.returncode == 0 and done.stderr == ""
    for words in ("paddledet 2.6.0", f"numpy {np.__version__}", "devices:", "cpu", "problems:    none found"):
        assert words in done.stdout


def test_the_report_names_what_is_missing(root, tmp_path):
    """OpenCV's own error on a machine without libGL."""
    message = "libGL.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "cv2.py").write_text(f'raise ImportError("{message}")\n')
    done = ppfcos(root, "environment", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0
    problems = [line for line in done.stdout.splitlines() if line.startswith("problem:")]
    assert any("apt-get install libgl1 libglib2.0-0" in line for line in problems)


@pytest.mark.parametrize(
    "words",
    [
        ("train", "-c", "configs/fcos_demo_shapes.yml"),
        ("eval", "-c", "configs/fcos_demo_shapes.yml"),
        ("infer", "--bundle", "any", "--infer_img", "any.jpg"),
        ("export", "-c", "configs/fcos_demo_shapes.yml"),
        ("model-info", "any"),
        ("benchmark", "any"),
        ("convert-weights", "any.pth", "-o", "any.pdparams"),
        ("convert-data", "any", "--to", "coco", "-o", "any"),
        ("check-data", "-c", "configs/fcos_demo_shapes.yml"),
        ("show-batch", "-c", "configs/fcos_demo_shapes.yml"),
    ],
    ids=lambda words: words[0],
)
def test_a_missing_library_is_one_line_of_every_command(root, tmp_path, words):
    message = "libGL.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "cv2.py").write_text(f'print("a banner")\nraise ImportError("{message}")\n')
    done = ppfcos(root, *words, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: {message}: apt-get install libgl1 libglib2.0-0\n"
