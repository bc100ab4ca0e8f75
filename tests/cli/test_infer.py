"""The commands tools/infer.py and tools/export_model.py, as they are typed."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import onnx
import paddle
import pytest
from conftest import needs_export, needs_proc
from helpers.small_bundles import heads_bundle
from helpers.small_detector import CLASS_NAMES, draw_image, pictures, small_model, write_config

from ppfcos.cli import export_model, infer
from ppfcos.cli.results import ResultsFile
from ppfcos.deploy import Predictor
from ppfcos.deploy.bundle import read_bundle
from ppfcos.errors import OutputError

ROOT = Path(__file__).resolve().parents[2]


class Small(NamedTuple):
    """The small detector as a configuration with its weights, and as a bundle."""

    config: Path
    weights: Path
    bundle: Path


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Small:
    bundle = heads_bundle(tmp_path_factory.getbasetemp() / "heads")
    return Small(bundle.parent / "small.yml", bundle.parent / "weights.pdparams", bundle)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Three pictures, a file that only looks like one, and one that nobody takes for one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, picture in zip(("a.jpg", "b.PNG", "c.bmp"), pictures()):
        cv2.imwrite(str(folder / name), picture)
    (folder / "b_broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def rows_of(folder: Path) -> list:
    return json.loads((folder / "bbox.json").read_text(encoding="utf-8"))


def test_a_bundle_on_a_folder(small, photos, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["--infer_dir", photos, "--output_dir", output, "--draw_threshold", "0.06", "--save_results"]
    assert infer.main(["--bundle", *map(str, [small.bundle, *arguments, "--threads", 2])]) == 0
    printed = capsys.readouterr()
    assert sorted(os.listdir(output)) == ["a.jpg", "b.PNG", "bbox.json", "c.bmp"]
    assert "b_broken.jpg" in printed.out and "1 image cannot be read" in printed.out.splitlines()[-1]
    assert "notes.txt" not in printed.out and printed.err == ""
    detections = Predictor(small.bundle, threads=2).predict([str(photos / "c.bmp")])[0]
    assert (cv2.imread(str(output / "c.bmp")) != cv2.imread(str(photos / "c.bmp"))).any()
    rows = [row for row in rows_of(output) if row["file_name"] == "c.bmp"]
    assert len(rows) == len(detections) > 0
    x0, y0, x1, y1 = detections.boxes[0].tolist()
    label = detections.labels[0]
    assert set(rows[0]) == {"image_id", "file_name", "category_id", "category_name", "bbox", "score"}
    assert rows[0]["image_id"] == 3 and rows[0]["category_name"] == CLASS_NAMES[label]
    assert rows[0]["category_id"] == (3, 7, 11)[label]
    np.testing.assert_allclose(rows[0]["bbox"], [x0, y0, x1 - x0, y1 - y0], atol=1e-2)
    drawn = sum(row["score"] >= 0.06 for row in rows_of(output))
    assert f"3 images with {drawn} objects of at least 0.06 in {output}" in printed.out


@pytest.mark.parametrize(("batch_size", "runtime"), [("1", "paddle"), ("2", "openvino")])
def test_checkpoint_and_bundle_find_the_same(small, photos, tmp_path, batch_size, runtime):
    common = ["--infer_dir", str(photos), "--save_results", "--batch_size", batch_size]
    model = ["-c", str(small.config), "-o", f"weights={small.weights}"]
    assert infer.main([*model, *common, "--output_dir", str(tmp_path / "checkpoint")]) == 0
    exported = ["--bundle", str(small.bundle), "--runtime", runtime]
    assert infer.main([*exported, *common, "--output_dir", str(tmp_path / "bundle")]) == 0
    ones, others = rows_of(tmp_path / "checkpoint"), rows_of(tmp_path / "bundle")
    assert len(ones) == len(others) > 30
    key = lambda row: (row["file_name"], row["category_name"], round(row["score"], 3), row["bbox"])  # noqa: E731
    for one, other in zip(sorted(ones, key=key), sorted(others, key=key)):
        assert (one["file_name"], one["category_name"]) == (other["file_name"], other["category_name"])
        np.testing.assert_allclose(one["bbox"], other["bbox"], atol=2e-3)
        np.testing.assert_allclose(one["score"], other["score"], atol=1e-5)


def test_one_picture_goes_before_a_folder(small, photos, tmp_path):
    both = ["--infer_img", str(photos / "a.jpg"), "--infer_dir", str(photos)]
    assert infer.main(["--bundle", str(small.bundle), *both, "--output_dir", str(tmp_path / "out")]) == 0
    assert os.listdir(tmp_path / "out") == ["a.jpg"]


def test_a_picture_of_an_unwritable_kind_becomes_a_png(small, photos, tmp_path):
    shutil.copy(photos / "b.PNG", photos / "scan.data")
    arguments = ["--infer_img", str(photos / "scan.data"), "--output_dir", str(tmp_path / "out")]
    assert infer.main(["--bundle", str(small.bundle), *arguments]) == 0
    assert os.listdir(tmp_path / "out") == ["scan.data.png"]


def make_video(path: Path, frames: int = 4) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 7, (320, 224))
    for i in range(frames):
        writer.write(draw_image(224, 320, i % 4))
    writer.release()
    return path


def test_a_video_is_drawn_frame_by_frame(small, tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    video, output = make_video(tmp_path / "videos" / "street.avi"), tmp_path / "out"
    arguments = ["--video_file", str(video), "--output_dir", str(output), "--draw_threshold", "0.08"]
    assert infer.main(["--bundle", str(small.bundle), *arguments]) == 0
    assert "4 frames with" in capsys.readouterr().out
    assert sorted(os.listdir(output)) == ["bbox.json", "street.avi.mp4"]
    drawn, source = cv2.VideoCapture(str(output / "street.avi.mp4")), cv2.VideoCapture(str(video))
    assert drawn.get(cv2.CAP_PROP_FPS) == 7
    frames = [source.read()[1] for _ in range(4)]
    for frame in frames:
        there, picture = drawn.read()
        assert there and picture.shape == frame.shape
        assert 1 < np.abs(picture.astype(int) - frame).mean() < 40  # boxes, and what the compression does
    assert not drawn.read()[0]
    expected = Predictor(small.bundle).predict(frames)
    rows = rows_of(output)
    assert [sum(row["image_id"] == i for row in rows) for i in range(4)] == [len(each) for each in expected]
    assert {row["file_name"] for row in rows} == {"street.avi"}


def test_a_video_that_is_none_is_one_line(small, tmp_path, capsys):
    (tmp_path / "none.mp4").write_bytes(b"no video")
    arguments = ["--video_file", str(tmp_path / "none.mp4"), "--output_dir", str(tmp_path / "out")]
    assert infer.main(["--bundle", str(small.bundle), *arguments]) == 2
    assert "none.mp4" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow  # two processes that import Paddle
def test_processes_share_the_pictures(small, photos, root, tmp_path):
    for i in range(4):
        cv2.imwrite(str(photos / f"d{i}.png"), draw_image(100, 150, i))
    one, two = tmp_path / "one", tmp_path / "two"
    arguments = ["--bundle", str(small.bundle), "--infer_dir", str(photos), "--save_results", "--output_dir"]
    assert infer.main([*arguments, str(one)]) == 0
    launch = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2"]
    launch += ["--log_dir", str(tmp_path / "log"), str(root / "tools" / "infer.py"), *arguments, str(two)]
    done = subprocess.run(launch, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(os.listdir(one)) == sorted(os.listdir(two)) and len(os.listdir(two)) == 8
    assert len(rows_of(one)) == len(rows_of(two)) > 0
    for row, other in zip(rows_of(one), rows_of(two)):
        assert row["file_name"] == other["file_name"] and row["image_id"] == other["image_id"]
        np.testing.assert_allclose(row["bbox"], other["bbox"], atol=1e-2)


def test_pictures_reach_visualdl(small, photos, tmp_path, capsys):
    log = tmp_path / "log"
    arguments = ["--infer_img", str(photos / "a.jpg"), "--use_vdl=true", "--vdl_log_dir", str(log)]
    assert infer.main(["--bundle", str(small.bundle), *arguments, "--output_dir", str(tmp_path / "out")]) == 0
    assert f"visualdl --logdir {log}" in capsys.readouterr().out
    from visualdl import LogReader

    reader = LogReader(file_path=str(next(log.iterdir())))
    assert reader.get_tags()["image"] == ["detections/a.jpg"]
    shown = cv2.imdecode(
        np.frombuffer(reader.get_data("image", "detections/a.jpg")[0].image.encoded_image_string, np.uint8), 1
    )
    assert np.abs(shown.astype(int) - cv2.imread(str(tmp_path / "out" / "a.jpg"))).mean() < 3


WRONG = {
    "no model": (["--infer_dir", "{photos}"], "--bundle FOLDER"),
    "two models": (["-c", "{config}", "--bundle", "{bundle}", "--infer_dir", "{photos}"], "not both"),
    "keys for a bundle": (
        ["--bundle", "{bundle}", "-o", "num_classes=3", "--infer_dir", "{photos}"],
        "remove -o",
    ),
    "a runtime without a bundle": (
        ["-c", "{config}", "--runtime", "openvino", "--infer_dir", "{photos}"],
        "--runtime is for bundles",
    ),
    "a video in VisualDL": (
        ["--bundle", "{bundle}", "--video_file", "{photos}/a.avi", "--use_vdl"],
        "--use_vdl",
    ),
    "no pictures": (["--bundle", "{bundle}"], "--infer_img"),
    "missing picture": (["--bundle", "{bundle}", "--infer_img", "{photos}/x.jpg"], "x.jpg"),
    "missing folder": (["--bundle", "{bundle}", "--infer_dir", "{photos}/x"], "no such folder"),
    "empty folder": (["--bundle", "{bundle}", "--infer_dir", "{empty}"], "contains no images"),
    "unreadable": (
        ["--bundle", "{bundle}", "--infer_img", "{photos}/b_broken.jpg"],
        "no image can be read: 1 file",
    ),
    "over itself": (
        ["--bundle", "{bundle}", "--infer_dir", "{photos}", "--output_dir", "{photos}"],
        "overwritten",
    ),
    "file for folder": (
        ["--bundle", "{bundle}", "--infer_dir", "{photos}", "--output_dir", "{config}"],
        "small.yml",
    ),
    "missing bundle": (["--bundle", "{empty}/none", "--infer_dir", "{photos}"], "no such bundle"),
    "no weights": (["-c", "{config}", "--infer_dir", "{photos}"], "weights="),
    "wrong weights": (["-c", "{config}", "-o", "weights={photos}/a.jpg", "--infer_dir", "{photos}"], "a.jpg"),
    "other weights": (
        ["-c", "{config}", "-o", "weights={weights}", "PPFCOSHead.num_convs=2", "--infer_dir", "{photos}"],
        "weights.pdparams",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line(small, photos, tmp_path, capsys, case):
    (tmp_path / "empty").mkdir()
    places = {
        "photos": photos,
        "empty": tmp_path / "empty",
        "config": small.config,
        "weights": small.weights,
        "bundle": small.bundle,
    }
    arguments, message = WRONG[case]
    arguments = [argument.format(**places) for argument in arguments]
    if "--output_dir" not in arguments:
        arguments += ["--output_dir", str(tmp_path / "out")]
    assert infer.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").is_dir() or not os.listdir(tmp_path / "out")


@pytest.mark.parametrize(
    "argument", [["--batch_size", "0"], ["--threads", "x"], ["--use_vdl", "perhaps"], ["--infer_im"]]
)
def test_wrong_options_are_argparses(argument, capsys):
    with pytest.raises(SystemExit) as raised:
        infer.main(argument)
    assert raised.value.code == 2 and argument[0] in capsys.readouterr().err


def test_export_writes_a_bundle_of_the_configurations_name(small, photos, tmp_path, capsys):
    arguments = [
        "-c",
        str(small.config),
        "--output_dir",
        str(tmp_path / "bundles"),
        "-o",
        f"weights={small.weights}",
        "--opset",
        "14",
    ]
    assert export_model.main(arguments) == 0
    bundle = tmp_path / "bundles" / "small"
    assert onnx.load(bundle / "model.onnx").opset_import[0].version == 14
    assert f"--bundle {bundle}" in capsys.readouterr().out
    ours, theirs = Predictor(bundle, threads=2), Predictor(small.bundle, threads=2)
    assert ours.class_names == tuple(CLASS_NAMES) and ours.category_ids == (1, 2, 3)
    for one, other in zip(ours.predict([photos / "a.jpg"]), theirs.predict([photos / "a.jpg"])):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-2)


@pytest.mark.parametrize(
    ("override", "message"),
    [("epoch=1", "weights="), ("weights=nowhere.pdparams", "nowhere.pdparams"), ("wieghts=a", "weights")],
)
def test_an_export_that_cannot_be_is_one_line(small, tmp_path, capsys, override, message):
    assert (
        export_model.main(["-c", str(small.config), "--output_dir", str(tmp_path / "out"), "-o", override])
        == 2
    )
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tool", ["infer.py", "export_model.py"])
def test_help_comes_at_once_and_from_anywhere(root, tmp_path, tool):
    script = (
        "import runpy, sys\n"
        "sys.argv = [sys.argv[1], '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n    print(sorted({'paddle', 'ppdet'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", script, str(root / "tools" / tool)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""
    assert "--output_dir" in done.stdout and done.stdout.rstrip().endswith("[]")


def test_the_tool_itself_says_nothing_unasked(small, photos, root, tmp_path):
    """In a process of its own: the libraries' noise stays off the screen."""
    command = [sys.executable, str(root / "tools" / "infer.py"), "--bundle", str(small.bundle)]
    command += ["--infer_img", str(photos / "a.jpg"), "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""
    assert len(done.stdout.splitlines()) == 2


@needs_export
def test_deformable_convolutions_are_exported_to_paddle_alone(tmp_path, capsys):
    """ONNX Runtime's CPU has no kernel for them, and OpenVINO no rule."""
    write_config(tmp_path)
    switch = "PPFCOSHead.deformable_convs=1"
    _, model = small_model(tmp_path, switch)
    paddle.save(model.state_dict(), str(tmp_path / "weights.pdparams"))
    arguments = ["-c", tmp_path / "small.yml", "--output_dir", tmp_path, "-o", switch]
    arguments = [str(each) for each in (*arguments, f"weights={tmp_path / 'weights.pdparams'}")]
    assert export_model.main([*arguments, "--formats", "onnx"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the model has deformable convolutions") and error.count("\n") == 1
    assert export_model.main(arguments) == 0
    assert "no ONNX model is exported" in capsys.readouterr().out
    assert list(read_bundle(tmp_path / "small").networks) == ["paddle"]
    assert len(Predictor(tmp_path / "small").predict(pictures()[:1])[0]) > 0


def pictures_named(folder: Path, names: list[bytes]) -> Path:
    folder.mkdir()
    picture = cv2.imencode(".jpg", next(iter(pictures())))[1].tobytes()
    for name in names:
        Path(os.path.join(folder, os.fsdecode(name))).write_bytes(picture)
    return folder


def infer_command(bundle: Path, folder: Path, output: Path) -> list[str]:
    words = [sys.executable, ROOT / "tools" / "infer.py", "--bundle", bundle, "--infer_dir", folder]
    return [*map(str, words), "--output_dir", str(output), "--save_results", "--threads", "1"]


def test_names_that_are_not_text(small, tmp_path):
    names = [b"caf\xe9.jpg", b"a\nb.jpg", b"c\x1b[2J.jpg", b"x" * 251 + b".jpg", 'é😀<".jpg'.encode()]
    folder = pictures_named(tmp_path / "photos", names)
    arguments = infer_command(small.bundle, folder, tmp_path / "out")[2:]
    assert infer.main(arguments) == 0
    found = {
        row["file_name"] for row in json.loads((tmp_path / "out" / "bbox.json").read_text(encoding="utf-8"))
    }
    assert found == {"caf\\xe9.jpg", *(name.decode() for name in names[1:])}
    assert set(os.listdir(os.fsencode(tmp_path / "out"))) == {*names, b"bbox.json"}


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_keeps_the_results(small, tmp_path, number):
    folder, output = (
        pictures_named(tmp_path / "photos", [b"%04d.jpg" % i for i in range(500)]),
        tmp_path / "out",
    )
    run = subprocess.Popen(
        infer_command(small.bundle, folder, output),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while run.poll() is None and len(list(output.glob("*.jpg"))) < 5:
        time.sleep(0.02)
    run.send_signal(number)
    _, complaint = run.communicate(timeout=60)
    killed = number == signal.SIGKILL
    assert run.returncode == (-number if killed else 128 + number)
    assert complaint.count(b"\n") == (0 if killed else 1)
    [file] = output.glob("*.json")
    assert file.name == ("bbox.unfinished.json" if killed else "bbox.json")
    images = {row["image_id"] for row in json.loads(file.read_text())}
    assert len(list(output.glob("*.jpg"))) - 1 <= len(images) < 500


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_keeps_a_playable_video(small, tmp_path, number):
    (tmp_path / "videos").mkdir()
    video, output = make_video(tmp_path / "videos" / "long.avi", frames=400), tmp_path / "out"
    words = [*infer_command(small.bundle, tmp_path, output), "--video_file", str(video)]
    run = subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    unfinished = output / "bbox.unfinished.json"
    while run.poll() is None and not (unfinished.exists() and unfinished.stat().st_size > 10_000):
        time.sleep(0.02)
    run.send_signal(number)
    _, complaint = run.communicate(timeout=60)
    assert run.returncode == 128 + number and complaint.count(b"\n") == 1
    assert sorted(os.listdir(output)) == ["bbox.json", "long.avi.mp4"]
    capture, frames = cv2.VideoCapture(str(output / "long.avi.mp4")), 0
    while capture.read()[0]:
        frames += 1
    numbers = {row["image_id"] for row in rows_of(output)}
    assert 0 < max(numbers) < frames + 1 < 400


@needs_proc
@pytest.mark.slow  # two processes that import Paddle
def test_a_signal_keeps_the_results_of_every_process(small, root, tmp_path):
    names = [b"%04d.jpg" % number for number in range(800)]
    folder, output = pictures_named(tmp_path / "photos", names), tmp_path / "out"
    launch = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2"]
    launch += ["--log_dir", str(tmp_path / "log"), *infer_command(small.bundle, folder, output)[1:]]
    run = subprocess.Popen(launch, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while run.poll() is None and len(list(output.glob("*.jpg"))) < 20:
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    run.wait(timeout=60)
    parts = sorted(path.name for path in output.glob("*.json"))
    assert parts == ["bbox.unfinished.0.json", "bbox.unfinished.1.json"]
    rows = [row for part in parts for row in json.loads((output / part).read_text())]
    images = {path.name for path in output.glob("*.jpg") if cv2.imread(str(path)) is not None}
    assert len(images) == len(list(output.glob("*.jpg"))) and images <= {row["file_name"] for row in rows}
    assert (
        infer.main(infer_command(small.bundle, pictures_named(tmp_path / "one", [b"a.jpg"]), output)[2:]) == 0
    )
    assert [path.name for path in output.glob("*.json")] == ["bbox.json"]


def test_a_disk_that_becomes_full_keeps_the_results(tmp_path):
    """As a limit of the size of files, which the system answers like a full disk."""
    file, row = ResultsFile(tmp_path / "bbox.json"), {"file_name": "x" * 300}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        file.add([row, row])
        for _ in range(2):
            with pytest.raises(OutputError, match=r"bbox\.json"):
                file.add([row, row])
            assert json.loads((tmp_path / "bbox.json").read_text()) == [row, row]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    file.add([row])
    file.close()
    assert json.loads((tmp_path / "bbox.json").read_text()) == [row] * 3


def test_a_pipe_in_the_place_of_the_results_is_refused(small, tmp_path, capsys):
    folder, output = pictures_named(tmp_path / "photos", [b"a.jpg"]), tmp_path / "out"
    output.mkdir()
    os.mkfifo(output / "bbox.json")
    assert infer.main(infer_command(small.bundle, folder, output)[2:]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_limits_of_the_process(small, tmp_path):
    """Each ends in one line, or the command does its work."""
    folder = pictures_named(tmp_path / "photos", [b"a.jpg"])

    def run(before: str, name: str) -> subprocess.CompletedProcess:
        words = [
            "sh",
            "-c",
            f'{before}; exec "$@"',
            "sh",
            *infer_command(small.bundle, folder, tmp_path / name),
        ]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    done = run("ulimit -v 300000", "memory")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "memory" in done.stderr
    assert run("ulimit -n 16", "files").returncode == 0
    (tmp_path / "gone").mkdir()
    assert run(f"cd {tmp_path}/gone; rmdir {tmp_path}/gone", "folder").returncode == 0
    shutil.rmtree(tmp_path / "folder")


@pytest.mark.slow
@pytest.mark.parametrize(
    "before", ["mkdir gone; cd gone; rmdir ../gone", "ulimit -v 1000000", "export HOME=/proc/none"]
)
def test_limits_of_the_process_where_paddle_is_imported(tmp_path, before):
    from helpers.small_config import write_config

    from ppfcos.data.shapes import generate

    generate(tmp_path / "shapes", train=2, val=2, size=96)
    config = write_config(tmp_path / "small.yml", ROOT, tmp_path / "shapes", tmp_path / "run")
    words = [sys.executable, ROOT / "tools" / "train.py", "-c", config, "-o", "epoch=1"]
    done = subprocess.run(
        ["sh", "-c", f'{before}; exec "$@"', "sh", *map(str, words)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    if "HOME" in before:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert_one_error_line(done)


def assert_one_error_line(done):
    """The shell itself may write lines, such as "sh: 0: getcwd() failed"."""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("sh: ")]
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "limit",
    ["ulimit -v 1000000", "ulimit -n 16", "export HOME=/proc/none", "cd gone; rmdir ../gone"],
)
@pytest.mark.parametrize("tool", ["export_model", "show_batch", "benchmark"])
def test_limits_of_the_process_in_other_commands(small, tmp_path, tool, limit):
    """Each command does its work, or ends with exit code 2 and one line."""
    from helpers.small_config import write_config

    from ppfcos.data.shapes import generate

    generate(tmp_path / "shapes", train=2, val=2, size=96)
    config = write_config(tmp_path / "small.yml", ROOT, tmp_path / "shapes", tmp_path / "run")
    (tmp_path / "gone").mkdir()
    arguments = {
        "export_model": [
            "-c",
            small.config,
            "-o",
            f"weights={small.weights}",
            "--output_dir",
            tmp_path / "out",
        ],
        "show_batch": ["-c", config, "--output", tmp_path / "batch.png"],
        "benchmark": [small.bundle, "--seconds", 1, "--threads", 1],
    }[tool]
    words = [sys.executable, ROOT / "tools" / f"{tool}.py", *arguments]
    done = subprocess.run(
        ["sh", "-c", f'{limit}; exec "$@"', "sh", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    if limit.startswith("ulimit -v"):
        assert done.returncode == 2
    if "HOME" in limit:
        assert done.returncode == 0, done.stderr
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr
    if done.returncode == 2:
        assert_one_error_line(done)
