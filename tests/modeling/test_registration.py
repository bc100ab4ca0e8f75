"""PPFCOS in PaddleDetection's workspace, whoever is imported first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

LIST_PARTS = (
    "from ppdet.core.workspace import global_config\n"
    "parts = ['PPFCOS', 'PPFCOSDecode', 'PPFCOSFPN', 'PPFCOSHead', 'PPFCOSLoss', 'PPFCOSTargets']\n"
    "assert all(part in global_config for part in parts), list(global_config)\n"
    "print('registered')\n"
)


def run(root, code, *options):
    """Run Python code in a process of its own, with the checkout on its path."""
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
        "import ppfcos\nfrom ppdet.core.workspace import create, load_config\n",
        "import ppdet\nimport ppfcos\n",
        "import ppfcos.modeling.head\n",
    ],
)
def test_registered_in_any_order_of_imports(root, imports):
    result = run(root, imports + LIST_PARTS)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("registered\n")


def test_ppdet_keeps_its_real_loader(root):
    """Tools that ask a module for its source or its data find what they would find without us."""
    result = run(
        root,
        """
        import importlib.util
        import ppfcos
        assert 'ppdet' not in sys.modules
        before = importlib.util.find_spec('ppdet')  # asking is not importing
        assert 'ppdet' not in sys.modules
        assert before.loader.is_package('ppdet') and before.submodule_search_locations
        assert 'from . import' in before.loader.get_source('ppdet')
        import ppdet, inspect, pkgutil
        from importlib.machinery import SourceFileLoader
        assert type(ppdet.__loader__) is type(ppdet.__spec__.loader) is SourceFileLoader
        assert 'from . import' in inspect.getsource(ppdet)
        assert pkgutil.get_data('ppdet', '__init__.py')
        import importlib
        assert importlib.reload(ppdet) is ppdet  # registers nothing twice
        """,
    )
    assert result.returncode == 0, result.stderr


def test_a_machine_without_paddledetection_can_import_the_package(root):
    result = run(
        root,
        """
        import ppfcos, ppfcos
        assert sum('ppfcos' in type(finder).__module__ for finder in sys.meta_path) == 1
        try:
            import ppdet
        except ModuleNotFoundError as error:
            print(error.name)
        """,
        "-I",
        "-S",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "ppdet\n"


def test_a_failure_to_register_is_not_kept_quiet(root):
    result = run(
        root,
        """
        import ppfcos
        sys.modules['ppfcos.modeling'] = None  # what Python takes for a module that cannot be imported
        import ppdet
        """,
    )
    assert result.returncode != 0
    assert "ppfcos.modeling" in result.stderr.splitlines()[-1]


def test_paddledetections_own_loader_reads_our_files_alike(root):
    """`ppdet.core.workspace.load_config` and ours give the same values and build the same model."""
    path = root / "configs" / "fcos_r18_bccd.yml"
    result = run(
        root,
        f"""
        import json, ppfcos
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
