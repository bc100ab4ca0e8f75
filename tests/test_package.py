"""The package as a user installs it: the wheel, its extras on each Python, and PaddleDetection beside it."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile

import pytest
from packaging.requirements import Requirement

PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13")


def requirements_of(root, name: str) -> list[Requirement]:
    lines = (root / f"requirements/{name}.txt").read_text(encoding="utf-8").splitlines()
    lines = [line.partition("#")[0].strip() for line in lines]
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


@pytest.fixture(scope="session")
def wheel(root, tmp_path_factory):
    """The wheel, built from the source archive as for a release."""
    pytest.importorskip("build", reason="needs the package build: pip install -r requirements/dev.txt")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, root]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [built] = folder.glob("ppfcos-*.whl")
    assert len(list(folder.glob("ppfcos-*.tar.gz"))) == 1
    return built


def test_wheel_holds_configurations_and_templates(root, wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for file in [*(root / "configs").rglob("*.yml"), *(root / "ppfcos/visualize/templates").iterdir()]:
        inside = file.relative_to(root).as_posix()
        inside = inside if inside.startswith("ppfcos/") else f"ppfcos/{inside}"
        assert inside in names
    assert not [name for name in names if not name.startswith(("ppfcos/", "ppfcos-"))]


def test_wheel_can_be_published(wheel):
    pytest.importorskip("twine", reason="needs twine: pip install -r requirements/dev.txt")
    files = [wheel, *wheel.parent.glob("*.tar.gz")]
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_installed_package_finds_its_configurations(wheel, tmp_path):
    """Outside a checkout, by name with and without .yml, and as the base of a file of the user."""
    installed, work = tmp_path / "installed", tmp_path / "work"
    zipfile.ZipFile(wheel).extractall(installed)
    work.mkdir()
    (work / "mine.yml").write_text("_BASE_: fcos_r50_fpn_1x_coco.yml\nnum_classes: 3\n")

    def ppfcos(*arguments):
        code = "import sys; sys.argv[0] = 'ppfcos'; from ppfcos.cli.main import main; sys.exit(main())"
        command = [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(installed)!r}); {code}",
            *arguments,
        ]
        return subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)

    names = ppfcos("configs").stdout.split()
    assert "fcos_r50_fpn_1x_coco" in names and "runtime" not in names
    for name in ("fcos_r50_fpn_1x_coco", "configs/fcos_r50_fpn_1x_coco.yml", "mine.yml"):
        shown = ppfcos("train", "-c", name, "--show_config")
        assert shown.returncode == 0, shown.stderr
        assert str(installed / "ppfcos/configs/runtime.yml") in shown.stdout
    missing = ppfcos("train", "-c", "fcos_r50_fpn_1x", "--show_config")
    assert missing.returncode == 2
    assert "no such configuration file; did you mean 'fcos_r50_fpn_1x_coco.yml'" in missing.stderr


def test_base_requirements_are_for_deployment(root):
    assert {each.name for each in requirements_of(root, "base")} == {
        *("numpy", "opencv-python-headless", "PyYAML", "onnxruntime"),
    }


def test_no_upper_bound_below_todays_versions(root):
    newest = {
        "numpy": "2.5.5",
        "opencv-python-headless": "5.0.0.93",
        "setuptools": "84.2.1",
        "scipy": "1.18.1",
    }
    newest["Pillow"], newest["onnxruntime"] = "13.0.0", "1.32.0"
    for name in ("base", "train", "cpu", "onnx", "openvino", "dev", "torch"):
        for each in requirements_of(root, name):
            assert each.name not in newest or each.specifier.contains(newest[each.name]), str(each)


def test_opencv_is_newer_than_the_webp_fault(root):
    [opencv] = [each for each in requirements_of(root, "base") if each.name.startswith("opencv")]
    assert not opencv.specifier.contains("4.8.0.76") and opencv.specifier.contains("4.8.1.78")


WITHOUT_PACKAGES = """
import importlib.abc, logging, sys, warnings

class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ABSENT:
            for finder in others():
                return finder.find_spec(name)
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def others():
    return [finder for finder in sys.meta_path if type(finder).__module__ == "ppfcos.paddledetection"]

sys.meta_path.insert(0, Hide())
warnings.simplefilter("ignore")
import ppfcos.modeling
from ppdet.core.workspace import create
assert not others() and not set(ABSENT) & set(sys.modules)
names = [name for name in logging.root.manager.loggerDict if name.startswith("ppdet")]
assert names and all(h.stream is sys.stdout for name in names for h in logging.getLogger(name).handlers)
create("PPFCOS")
print("created")
"""


@pytest.mark.parametrize("absent", [("sklearn", "pkg_resources"), ("shapely", "lap", "motmetrics", "numba")])
def test_paddledetection_is_imported_without_packages_that_fcos_does_not_use(root, absent):
    """The packages stay absent afterwards, nothing is printed, and no finder is left."""
    code = f"ABSENT = {absent!r}\n{WITHOUT_PACKAGES}"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["created"]


def test_missing_paddledetection_is_one_line(root, tmp_path):
    module = tmp_path / "ppdet.py"
    module.write_text("raise ModuleNotFoundError(\"No module named 'ppdet'\", name='ppdet')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from ppfcos.cli.main import main; "
    command = [sys.executable, "-c", f"{code}sys.exit(main(['train', '-c', 'fcos_demo_shapes']))"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert re.match(r"error: No module named 'ppdet'.* pip install --no-deps paddledet==2\.6\.0$", line)


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extra", ["", "train", "cpu", "gpu", "deploy", "onnx", "openvino", "dev", "docs"])
def test_extras_resolve(wheel, python, extra):
    """From wheels only, as pip resolves them for another version of Python."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--quiet",
        "--target",
        "unused",
        "--no-cache-dir",
    ]
    platforms = [
        f"--platform=manylinux_{version}_x86_64" for version in ("2_28", "2_27", "2_24", "2_17", "2_12")
    ]
    options = [
        "--only-binary=:all:",
        f"--python-version={python}",
        *platforms,
        "--platform=manylinux2014_x86_64",
    ]
    target = f"{wheel}[{extra}]" if extra else str(wheel)
    done = subprocess.run([*pip, *options, target], capture_output=True, text=True, check=False, timeout=600)
    if "Could not find a version" in done.stderr and "from versions: none" in done.stderr:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("file", ["requirements.txt", "requirements/conservative.txt"])
def test_requirements_resolve_here(root, file):
    if "conservative" in file and sys.version_info >= (3, 12):
        pytest.skip("the conservative set is for Python 3.9 to 3.11")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--quiet",
        "--ignore-installed",
        "-r",
        root / file,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
