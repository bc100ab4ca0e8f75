"""tools/train.py and tools/eval.py as users start them, in one process and two, and on bad input."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from helpers.small_config import write_config
from visualdl import LogReader

from ppfcos.cli import command, eval, train
from ppfcos.config import load_config
from ppfcos.data.shapes import generate
from ppfcos.engine.checkpoint import read_manifest
from ppfcos.engine.model import build_model
from ppfcos.engine.weights import read_state
from ppfcos.errors import ConfigError
from ppfcos.metrics.coco import METRIC_NAMES, evaluate_detections

LAUNCH = ("-m", "paddle.distributed.launch", "--nproc_per_node", "2")
# Frozen norms, for a norm's statistics are of one process's images. Losses, and so gradients, are of all.
FROZEN = "ResNet.freeze_norm=true"


class Run:
    """A training of two epochs, started from a shell, and its results."""

    def __init__(self, folder: Path, config: Path):
        self.folder = folder / "run" / "small"
        self.config = config
        self.finished: subprocess.CompletedProcess | None = None

    def records(self) -> LogReader:
        (file,) = (self.folder / "vdl_log").iterdir()
        return LogReader(file_path=str(file))

    def curves(self) -> dict[str, list]:
        reader = self.records()
        return {tag: [x.value for x in reader.get_data("scalar", tag)] for tag in reader.get_tags()["scalar"]}


def _python(arguments: list, root: Path, folder: Path, **options) -> subprocess.CompletedProcess:
    """Run tools/..., from another folder than the checkout."""
    arguments = [str(root / part) if str(part).startswith("tools/") else str(part) for part in arguments]
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300, **options
    )


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "shapes"
    generate(folder, train=7, val=5, size=96, seed=1)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory, dataset, root) -> Run:
    """One process, two epochs of three steps, evaluated after each."""
    folder = tmp_path_factory.mktemp("one")
    run = Run(folder, write_config(folder / "small.yml", root, dataset, folder / "run"))
    run.finished = _python(
        ["tools/train.py", "-c", run.config, "--eval", "--use_vdl", "-o", "epoch=2", FROZEN], root, folder
    )
    assert run.finished.returncode == 0, run.finished.stderr
    return run


@pytest.fixture
def small(tmp_path, dataset, root) -> Path:
    return write_config(tmp_path / "small.yml", root, dataset, tmp_path / "run")


# A training


def test_a_training_writes_the_documented_files(trained):
    names = sorted(path.name for path in trained.folder.iterdir())
    checkpoints = [
        f"{name}.{suffix}"
        for name in ("0", "best_model", "model_final")
        for suffix in ("json", "pdopt", "pdparams")
    ]
    assert names == sorted(
        [*checkpoints, "config.yml", "evaluations.json", "run.json", "train.log", "vdl_log"]
    )
    lines = trained.finished.stdout.splitlines()
    assert len([line for line in lines if re.search(r"epoch: \[[12]/2\] step: \[[123]/3\]", line)]) == 6
    assert sum("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all" in line for line in lines) == 2
    best = next(line for line in lines if "best checkpoint" in line)
    assert f"{trained.folder}/best_model.pdparams" in best
    assert f"visualdl --language en --logdir {trained.folder}/vdl_log" in trained.finished.stdout
    assert all(re.match(r"\[\d\d/\d\d \d\d:\d\d:\d\d\] | Average ", line) for line in lines), lines
    assert trained.finished.stderr == ""


def test_a_trainings_curves_are_complete(trained):
    curves = trained.curves()
    assert len(curves["train/loss"]) == 6
    parts = [curves[f"train/loss_{part}"] for part in ("cls", "box", "quality")]
    np.testing.assert_allclose(np.sum(parts, axis=0), curves["train/loss"], rtol=1e-5)
    np.testing.assert_allclose(
        curves["train/learning_rate"], [0.001, 0.004, 0.007, 0.01, 0.01, 0.01], rtol=1e-5
    )
    more = ("gradient_norm", "images_per_second", "data_seconds", "memory_gb")
    assert all(len(curves[f"train/{name}"]) == 6 and min(curves[f"train/{name}"]) >= 0 for name in more)
    assert {f"eval/{name}" for name in METRIC_NAMES} <= set(curves)
    classes = [f"eval_AP_of_class/{name}" for name in ("circle", "rectangle", "triangle")]
    assert all(len(curves[name]) == 2 for name in classes)
    tags = trained.records().get_tags()
    assert {tag.split("/")[0] for tag in tags["image"]} == {"images"} and len(tags["image"]) == 4
    assert "precision_recall_IoU50/mean" in tags["pr_curve"] and tags["hyper_parameters"]
    best = max(curves["eval/AP"])
    assert read_manifest(trained.folder / "best_model").ap == pytest.approx(best, abs=1e-6)
    first_best = 1 + curves["eval/AP"].index(best)
    assert read_state(trained.folder / "best_model.pdopt")["last_epoch"] == first_best


def test_paddle_loads_the_weights(trained):
    model = build_model(load_config(trained.config, [FROZEN]))
    weights = paddle.load(str(trained.folder / "model_final.pdparams"))
    assert weights.keys() == model.state_dict().keys()
    missing, unexpected = model.set_state_dict(weights)
    assert not missing
    assert not unexpected


def test_a_profile_shows_the_phases_and_changes_no_result(trained, tmp_path, dataset, root):
    config = write_config(tmp_path / "small.yml", root, dataset, tmp_path / "run")
    arguments = ["tools/train.py", "-c", config, "--profile", "-o", "epoch=2", FROZEN]
    finished = _python(arguments, root, tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "time of steps 2 to 3" in finished.stdout
    for phase in ("data wait", "forward", "backward", "communication", "optimizer"):
        assert re.search(rf"^{phase} +\d+\.\d+ +\d+\.\d%$", finished.stdout, re.M), phase
    (trace,) = (tmp_path / "run" / "small" / "profile").iterdir()
    events = [str(event.get("name")) for event in json.loads(trace.read_text())["traceEvents"]]
    assert all(any(event.startswith(phase) for event in events) for phase in ("forward", "backward"))
    assert not (tmp_path / "profiler_log").exists()
    whole, profiled = (
        read_state(folder / "model_final.pdparams") for folder in (trained.folder, tmp_path / "run" / "small")
    )
    for name, value in whole.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(profiled[name], value, err_msg=name)


def test_the_recorded_configuration_repeats_the_run(trained, tmp_path, root):
    """config.yml alone, written elsewhere by one override, is the same training."""
    arguments = ["tools/train.py", "-c", trained.folder / "config.yml", "-o", f"save_dir={tmp_path}"]
    finished = _python(arguments, root, tmp_path)
    assert finished.returncode == 0, finished.stderr
    whole, again = (read_state(run / "model_final.pdparams") for run in (trained.folder, tmp_path / "small"))
    for name, value in whole.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(again[name], value, err_msg=name)


# An evaluation


# All detections that there are. And one image at a time and one thread, so that the same numbers are added up
# in the same order whoever has the image: then boxes and scores, and so AP, are equal to the last digit.
EXACTLY = ["PPFCOSDecode.score_threshold=0.0", "EvalReader.batch_size=1"]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def _evaluate(run: Run, folder: Path, root: Path, *options: str, launch: tuple = ()) -> tuple[str, list]:
    """Output of tools/eval.py, and the detections that it writes."""
    arguments = [*launch, "tools/eval.py", "-c", run.config, *options, "--output_eval", "found"]
    weights = f"weights={run.folder / 'best_model'}"
    finished = _python([*arguments, "-o", weights, *EXACTLY], root, folder, env=ONE_THREAD)
    assert finished.returncode == 0, finished.stderr
    assert launch or finished.stderr == ""
    return finished.stdout, json.loads((folder / "found" / "bbox.json").read_text())


@pytest.fixture(scope="session")
def evaluated(trained, root) -> tuple[str, list]:
    """By one process."""
    return _evaluate(trained, trained.config.parent, root, "--classwise")


def test_an_evaluation_prints_the_tables_and_writes_the_detections(evaluated, dataset):
    stdout, found = evaluated
    truth = json.loads((dataset / "annotations" / "instances_val2017.json").read_text())
    assert stdout.count("Average Precision  (AP)") == 6
    assert stdout.count("Average Recall     (AR)") == 6
    for category in truth["categories"]:
        assert re.search(rf" {category['name']} +AP = ", stdout)
    assert {detection["image_id"] for detection in found} == {image["id"] for image in truth["images"]}
    assert {d["category_id"] for d in found} <= {category["id"] for category in truth["categories"]}
    assert all(len(detection["bbox"]) == 4 and 0 <= detection["score"] <= 1 for detection in found)


def _truth_near(found: list[dict], truth: dict) -> dict:
    """The dataset with objects near a few of the detections: of those that are drawn there, a network of six
    steps finds none, and an AP of nothing is always the same."""
    rng, notes = np.random.default_rng(0), []
    for image in truth["images"]:
        here = [one for one in found if one["image_id"] == image["id"]]
        here.sort(key=lambda one: -one["score"])
        for one in here[:20:4]:
            x, y, width, height = one["bbox"]
            moved = rng.normal(0, 0.1, 2) * (width, height)
            note = {"id": len(notes) + 1, "image_id": image["id"], "category_id": one["category_id"]}
            box = {"bbox": [x + moved[0], y + moved[1], width, height], "area": width * height}
            notes.append({**note, **box, "iscrowd": 0})
    return {**truth, "annotations": notes}


def test_two_processes_give_the_detections_of_one(evaluated, trained, tmp_path, dataset, root):
    _, found = evaluated
    drawn = json.loads((dataset / "annotations" / "instances_val2017.json").read_text())
    truth = _truth_near(found, drawn)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    options = ("--report", "report", "-o", f"EvalDataset.anno_path={tmp_path / 'truth.json'}")
    printed, theirs = _evaluate(trained, tmp_path, root, *options, launch=LAUNCH)
    # Every image once, and in it the same boxes in the same order, whichever process had it.
    assert sorted(theirs, key=lambda one: one["image_id"]) == sorted(found, key=lambda one: one["image_id"])
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["detections"] == len(found)
    figures = evaluate_detections(truth, found)
    assert 0.05 < figures.ap < 0.95, "the case says nothing"
    assert report["figures"] == {k: None if v == -1 else v for k, v in figures.named().items()}
    assert all(line in printed.splitlines() for line in figures.table().splitlines())
    assert printed.count("report: ") == 1


def test_written_detections_are_evaluated_without_the_model(evaluated, trained, capsys):
    folder = str(trained.config.parent / "found")
    assert eval.main(["-c", str(trained.config), "--json_eval", "--output_eval", folder, "--classwise"]) == 0
    table = re.compile(r"^ .*$", re.MULTILINE)
    assert table.findall(capsys.readouterr().out) == table.findall(evaluated[0])


# Bad input


def _error(capsys) -> str:
    """The one line on the standard error."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def test_a_missing_configuration_is_named(tmp_path, capsys):
    assert train.main(["-c", str(tmp_path / "nowhere.yml")]) == 2
    assert "nowhere.yml" in _error(capsys)


@pytest.mark.parametrize("name", ["file/output", "file"])
def test_an_output_folder_that_cannot_be_written_is_named_before_anything_starts(
    tmp_path, small, capsys, name
):
    (tmp_path / "file").write_text("mine")
    assert train.main(["-c", str(small), "-o", f"save_dir={tmp_path / name}"]) == 2
    assert str(tmp_path / name) in _error(capsys)
    assert (tmp_path / "file").read_text() == "mine"


def test_corrupt_weights_end_the_process_with_one_line(trained, tmp_path, small, root):
    content = (trained.folder / "model_final.pdparams").read_bytes()
    (tmp_path / "half.pdparams").write_bytes(content[: len(content) // 2])
    finished = _python(
        ["tools/train.py", "-c", small, "-o", "pretrain_weights=half.pdparams"], root, tmp_path
    )
    assert finished.returncode == 2
    assert re.fullmatch(r"error: half\.pdparams is damaged or no weights file \(.*\n", finished.stderr)
    assert not list((tmp_path / "run").rglob("*.pdparams"))


def test_weights_of_another_model_are_listed(trained, tmp_path, small, capsys):
    weights = f"weights={trained.folder / 'best_model'}"
    assert (
        eval.main(
            [
                "-c",
                str(small),
                "--output_eval",
                str(tmp_path / "found"),
                "-o",
                weights,
                "PPFCOSFPN.out_channels=32",
            ]
        )
        == 2
    )
    message = _error(capsys)
    assert "holds weights of another model" in message
    assert re.search(r"\d+ of another shape \(neck\.\S+ \[64.*\] instead of \[32", message)
    assert not (tmp_path / "found").exists()


def test_a_resumed_checkpoint_of_another_model_is_refused(trained, tmp_path, small, capsys):
    arguments = ["-c", str(small), "-r", str(trained.folder / "0"), "-o", "PPFCOSHead.num_convs=2", "epoch=3"]
    assert train.main(arguments) == 2
    assert re.search(r"\d+ missing \(head\.class_tower", _error(capsys))
    assert not list((tmp_path / "run").rglob("*.pdparams"))


def test_missing_data_and_missing_weights_are_named(tmp_path, small, capsys):
    assert train.main(["-c", str(small), "-o", f"TrainDataset.dataset_dir={tmp_path / 'coco'}"]) == 2
    assert "download_coco.py" in _error(capsys)
    assert eval.main(["-c", str(small)]) == 2
    assert "model_final.pdparams cannot be read" in _error(capsys)
    assert not list((tmp_path / "run").rglob("*.pdparams"))


def test_an_unreadable_image_of_one_process_stops_both(tmp_path, dataset, root):
    shutil.copytree(dataset, tmp_path / "shapes")
    picture = sorted((tmp_path / "shapes" / "train2017").iterdir())[3]
    picture.write_bytes(picture.read_bytes()[:50])
    config = write_config(tmp_path / "small.yml", root, tmp_path / "shapes", tmp_path / "run")
    arguments = ["-c", config, "-o", "max_bad_images=0", "TrainReader.drop_last=false"]
    finished = _python([*LAUNCH, "tools/train.py", *arguments], root, tmp_path)
    assert finished.returncode == 2, finished.stdout
    for worker in ("workerlog.0", "workerlog.1"):
        (line,) = re.findall("^error: .*", (tmp_path / "log" / worker).read_text(), re.MULTILINE)
        assert picture.name in line
    assert not list((tmp_path / "run").rglob("*.pdparams"))


# The command lines


def test_options_are_typed_as_in_paddledetection():
    def parse(line):
        return train.build_parser().parse_args(line.split())

    options = parse("-c a.yml --eval --use_vdl=true -o use_gpu=false epoch=3 -o seed=1 --amp -r out/0")
    assert options.eval is options.use_vdl is options.amp is True
    assert options.to_static is None
    assert options.resume == "out/0"
    given = command.overrides(options, "amp", "to_static", "use_vdl", "vdl_log_dir")
    assert given == ["use_gpu=false", "epoch=3", "seed=1", "amp=true", "use_vdl=true"]
    for text, value in (("--use_vdl", True), ("--use_vdl True", True), ("--use_vdl=False", False)):
        assert parse(f"-c a.yml {text}").use_vdl is value
    assert parse("-c a.yml --use_vdl --vdl_log_dir here").vdl_log_dir == "here"


def _raises(error):
    def fail(options):
        logging.getLogger("ppfcos.engine").info("on the way")
        logging.getLogger("ppfcos.engine").warning("look out")
        raise error

    return fail


def _parser() -> argparse.ArgumentParser:
    return command.option_parser("Nothing.", "nothing", config_required=False)


def test_an_error_is_one_line_and_shows_its_traceback_on_demand(capsys):
    assert command.run(_raises(ConfigError("a line\n  and another")), _parser(), []) == 2
    out, err = capsys.readouterr()
    assert err == "error: a line and another\n"
    assert re.fullmatch(r"\[\S+ \S+\] on the way\n\[\S+ \S+\] warning: look out\n", out)
    assert command.run(_raises(ConfigError("a line")), _parser(), ["--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
