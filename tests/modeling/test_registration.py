"""`import ppfcos.modeling` registers the network in PaddleDetection's workspace."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap

import pytest

import ppfcos.modeling

LIST_PARTS = (
    "from ppdet.core.workspace import global_config\n"
    "parts = ['PPFCOS', 'PPFCOSDecode', 'PPFCOSFPN', 'PPFCOSHead', 'PPFCOSLoss', 'PPFCOSTargets']\n"
    "assert all(part in global_config for part in parts), list(global_config)\n"
    "print('registered')\n"
)


def run(root, code, *options):
    """Run Python code in a new process, with the checkout on its path."""
    return subprocess.run(
        [
            sys.executable,
            *options,
            "-c",
            f"import sys\nsys.path.insert(0, {str(root)!r})\n{textwrap.dedent(code)}",
        ],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "imports",
    [
        "import ppfcos.modeling\n",
        "import ppfcos.paddledetection\nimport ppdet.engine\nimport ppfcos.modeling\n",
        "import ppfcos.modeling.head\n",
    ],
)
def test_registers_in_any_order_of_imports(root, imports):
    result = run(root, imports + LIST_PARTS)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("registered\n")


def test_documented_command_runs_tools_of_paddledetection(root, tmp_path):
    """The command in the docstring of ppfcos.modeling passes the arguments on to the tool."""
    tool = tmp_path / "tool.py"
    tool.write_text(
        "import os, sys\n"
        f"{LIST_PARTS}assert sys.argv == [{str(tool)!r}, '-c', 'x.yml'], sys.argv\n"
        "assert 'PPFCOS_OMP_NUM_THREADS' in os.environ or 'OMP_NUM_THREADS' in os.environ\n"
    )
    code = re.search(r'python -c "(.*)" tools/train.py', ppfcos.modeling.__doc__, re.DOTALL)[1]
    result = subprocess.run(
        [sys.executable, "-c", code.replace("\\\n", ""), str(tool), "-c", "x.yml"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("registered\n")


def test_paddledetections_own_loader_reads_the_configs(root):
    """`ppdet.core.workspace.load_config` and `ppfcos.config.load_config` build the same model."""
    path = root / "configs" / "fcos_r18_bccd.yml"
    result = run(
        root,
        f"""
        import json, ppfcos.modeling
        from ppdet.core.workspace import create, load_config
        cfg = load_config({str(path)!r})
        model = create(cfg.architecture)
        create('LearningRate')(10)
        sizes = {{name: list(weight.shape) for name, weight in model.named_parameters()}}
        plain = {{key: value for key, value in cfg.items() if key != 'LearningRate' and value}}
        rate = cfg['LearningRate']
        print(json.dumps([plain, sizes, rate['base_lr'], [vars(s) for s in rate['schedulers']]]))
        """,
    )
    assert result.returncode == 0, result.stderr
    theirs, their_sizes, rate, schedulers = json.loads(result.stdout.splitlines()[-1])

    from ppdet.core.workspace import create

    from ppfcos.config import load_config

    ours = load_config(path)
    assert {key: ours[key] for key in theirs} == theirs
    assert {name: list(weight.shape) for name, weight in create("PPFCOS").named_parameters()} == their_sizes
    built = create("LearningRate")
    assert (built.base_lr, [vars(each) for each in built.schedulers]) == (rate, schedulers)
