"""Checkpoints: written, read, resumed, verified, ordered, and refused if damaged or unsafe."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import logging
import os
import pickle
import resource
import shutil
import subprocess
import sys
import threading

import numpy as np
import paddle
import pytest
from paddle import nn
from ppdet.optimizer import ModelEMA as TheirEMA

from ppfcos.engine import checkpoint, checkpoint_files, run_folder, weights
from ppfcos.engine.checkpoint import Plan, TrainingState
from ppfcos.engine.ema import ModelEMA, ema_weights
from ppfcos.engine.weights import read_state
from ppfcos.errors import OutputError, WeightsError
from ppfcos.fileio import require_writable, sha256


class Net(nn.Layer):
    """A backbone with running statistics, and a head."""

    def __init__(self, classes: int = 3):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4))
        self.head = nn.Linear(4, classes)

    def forward(self, image):
        return self.head(self.backbone(image).mean([2, 3]))


def _training(seed: int = 0, optimizer=paddle.optimizer.Momentum, classes: int = 3):
    paddle.seed(seed)
    model = Net(classes)
    schedule = paddle.optimizer.lr.PiecewiseDecay([2, 4], [0.1, 0.01, 0.001])
    return model, optimizer(schedule, parameters=model.parameters()), schedule


def _steps(model, optimizer, schedule, first: int, last: int, average=None) -> None:
    model.train()
    for step in range(first, last):
        image = paddle.to_tensor(np.random.default_rng(step).random((2, 3, 8, 8), dtype="float32"))
        (model(image) ** 2).sum().backward()
        optimizer.step()
        optimizer.clear_grad()
        schedule.step()
        if average is not None:
            average.update()


def _arrays(model) -> dict:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def _assert_equal(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


# What paddle.save writes


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_state_dict_reads_as_paddle_loads_it(tmp_path, protocol):
    model = Net()
    path = tmp_path / "model.pdparams"
    paddle.save(model.state_dict(), str(path), protocol=protocol)
    state = read_state(path)
    del state["StructuredToParameterName@@"]
    _assert_equal(state, paddle.load(str(path), return_numpy=True))


@pytest.mark.parametrize("optimizer", [paddle.optimizer.Momentum, paddle.optimizer.AdamW])
def test_an_optimizers_state_reads_as_paddle_loads_it(tmp_path, optimizer):
    model, optimizer, schedule = _training(optimizer=optimizer)
    _steps(model, optimizer, schedule, 0, 3)
    path = tmp_path / "model.pdopt"
    paddle.save({**optimizer.state_dict(), "last_epoch": 2}, str(path))
    state, theirs = read_state(path), paddle.load(str(path), return_numpy=True)
    for state_dict in (state, theirs):
        assert state_dict.pop("last_epoch") == 2
    assert state.pop("LR_Scheduler") == theirs.pop("LR_Scheduler") == schedule.state_dict()
    _assert_equal(state, theirs)


def test_sixteen_bit_weights_with_their_masters_read(tmp_path):
    model, _, schedule = _training()
    model = paddle.amp.decorate(model, level="O2", dtype="bfloat16")
    optimizer = paddle.optimizer.AdamW(schedule, parameters=model.parameters(), multi_precision=True)
    master = paddle.to_tensor(np.arange(3, dtype="float32"))
    path = tmp_path / "model.pdopt"
    paddle.save({**optimizer.state_dict(), "master_weights": {"linear_0.b_0": master}}, str(path))
    np.testing.assert_array_equal(read_state(path)["master_weights"]["linear_0.b_0"], [0, 1, 2])
    paddle.save(model.state_dict(), str(tmp_path / "model.pdparams"))
    full = Net()
    weights.load_weights(full, tmp_path / "model.pdparams")
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(full.state_dict()[name].numpy(), tensor.astype("float32").numpy())


PYTHON_2 = (  # {'weight': numpy.array([1, 2], 'float32')}, as Python 2 pickled it
    b"(dp0\nS'weight'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\nt"
    b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
    b"S'\\x00\\x00\\x80?\\x00\\x00\\x00@'\ntbs."
)


def test_files_of_python_2_are_read(tmp_path):
    (tmp_path / "old.pdparams").write_bytes(PYTHON_2)
    np.testing.assert_array_equal(read_state(tmp_path / "old.pdparams")["weight"], [1, 2])


# What must not be read


class _Runs:
    """Would run a command when an ordinary unpickler reads it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (_Runs(os.system, "touch HERE"), r"(posix|nt)\.system"),
        (_Runs(eval, "1"), r"builtins\.eval"),
        (_Runs(getattr, "text", "upper"), r"builtins\.getattr"),
        (_Runs(functools.partial, print), r"functools\.partial"),
        (_Runs(np.load, "HERE"), r"numpy\.load"),
    ],
)
def test_a_pickle_that_would_run_code_is_refused_and_named(tmp_path, monkeypatch, call, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pdparams"
    path.write_bytes(pickle.dumps({"weight": call}))
    with pytest.raises(WeightsError, match=rf"evil\.pdparams is refused.*{name}") as caught:
        read_state(path)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", ["pdopt", "pdparams", "pdema"])
def test_no_file_of_a_checkpoint_may_run_code(tmp_path, monkeypatch, suffix):
    """Even if the record has its checksum: the author of the file may have written the record, too."""
    monkeypatch.chdir(tmp_path)
    path = _saved(tmp_path)
    evil = tmp_path / f"m.{suffix}"
    evil.write_bytes(pickle.dumps({"weight": _Runs(os.system, "touch HERE")}))
    manifest = json.loads((tmp_path / "m.json").read_text())
    manifest["files"][f".{suffix}"] = {"bytes": evil.stat().st_size, "sha256": sha256(evil)}
    for content in (checkpoint_files._record_bytes(manifest), None):
        (tmp_path / "m.json").unlink() if content is None else (tmp_path / "m.json").write_bytes(content)
        with pytest.raises(WeightsError, match=rf"m\.{suffix} is refused: its pickle asks for posix\.system"):
            checkpoint.resume(*_training()[:2], path)
    assert not (tmp_path / "HERE").exists()


def test_damaged_files_are_named(tmp_path):
    whole = tmp_path / "whole.pdparams"
    paddle.save(Net().state_dict(), str(whole))
    content = whole.read_bytes()
    rng = np.random.default_rng(0)
    damaged = {
        "empty": b"",
        "half": content[: len(content) // 2],
        "cut": content[:-1],
        "page": b"<!DOCTYPE html><html>404</html>",
        "noise": rng.integers(0, 256, 999, dtype=np.uint8).tobytes(),
        "huge": content.replace(b"K\x04K\x03K\x03K\x03", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7fK\x03"),
        "list": pickle.dumps([1, 2]),
    }
    for name, bad in damaged.items():
        path = tmp_path / f"{name}.pdparams"
        path.write_bytes(bad)
        with pytest.raises(WeightsError, match=rf"{name}\.pdparams") as caught:
            weights.load_weights(Net(), path)
        assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere\.pdparams cannot be read: No such file"):
        weights.load_weights(Net(), tmp_path / "nowhere")


# Weights into a model


def test_weights_load_with_and_without_the_suffix(tmp_path):
    paddle.seed(1)
    source = Net()
    paddle.save(source.state_dict(), str(tmp_path / "model.v2.pdparams"))
    for name in ("model.v2", "model.v2.pdparams"):
        model = Net()
        weights.load_weights(model, tmp_path / name)
        _assert_equal(_arrays(model), _arrays(source))


def test_weights_of_another_model_are_listed_and_nothing_is_loaded(tmp_path):
    state = dict(Net(classes=5).state_dict())
    state["neck.weight"] = state.pop("backbone.0.weight")
    paddle.save(state, str(tmp_path / "other.pdparams"))
    model = Net(classes=3)
    before = _arrays(model)
    with pytest.raises(WeightsError) as caught:
        weights.load_weights(model, tmp_path / "other.pdparams")
    message = str(caught.value)
    assert "1 missing (backbone.0.weight)" in message
    assert "1 unexpected (neck.weight)" in message
    assert (
        "2 of another shape (head.weight [4, 5] instead of [4, 3], head.bias [5] instead of [3])" in message
    )
    assert "\n" not in message
    _assert_equal(_arrays(model), before)


def test_an_optimizers_state_is_no_weights(tmp_path):
    model, optimizer, schedule = _training()
    _steps(model, optimizer, schedule, 0, 1)
    checkpoint.save_checkpoint(tmp_path, "m", model.state_dict(), optimizer, TrainingState(1))
    with pytest.raises(WeightsError, match="more than weights"):
        weights.load_weights(model, tmp_path / "m.pdopt")


def test_backbone_weights_match_by_the_ends_of_their_names(tmp_path, caplog):
    paddle.seed(2)
    source = Net(classes=7)
    state = {name.replace("backbone.", ""): value for name, value in source.state_dict().items()}
    state["fc.weight"] = paddle.ones([4, 10])
    paddle.save(state, str(tmp_path / "imagenet.pdparams"))
    model = Net(classes=3)
    head = model.head.weight.numpy()
    with caplog.at_level("INFO", logger="ppfcos"):
        weights.load_pretrained(model, str(tmp_path / "imagenet"))
    for name, value in _arrays(source).items():
        if name.startswith("backbone."):
            np.testing.assert_array_equal(model.state_dict()[name].numpy(), value)
    np.testing.assert_array_equal(model.head.weight.numpy(), head)
    assert "6 of the model's 8 taken, 1 not in the model (fc.weight), 2 of another shape" in caplog.text


def test_names_are_matched_as_paddledetection_matches_them(tmp_path):
    from ppdet.modeling.backbones.resnet import ResNet
    from ppdet.utils.checkpoint import match_state_dict

    model = nn.LayerDict({"backbone": ResNet(depth=18, return_idx=[1, 2, 3])})
    for prefix in ("", "backbone."):
        file = {prefix + name[len("backbone.") :]: tensor for name, tensor in model.state_dict().items()}
        file["fc.weight"] = paddle.ones([512, 1000])
        theirs = match_state_dict(model.state_dict(), dict(file))
        ours = weights._match_names(model.state_dict(), file)
        assert {name: file[key] is theirs[name] for name, key in ours.items()} == dict.fromkeys(theirs, True)


def test_pretrained_weights_that_fit_nowhere_or_twice_are_refused(tmp_path):
    paddle.save({"stem.weight": paddle.ones([1])}, str(tmp_path / "alien.pdparams"))
    with pytest.raises(WeightsError, match=r"none of its 1 weights fits.*stem\.weight"):
        weights.load_pretrained(Net(), str(tmp_path / "alien.pdparams"))
    paddle.save({"weight": paddle.ones([4])}, str(tmp_path / "vague.pdparams"))
    with pytest.raises(WeightsError, match="its weight fits both"):
        weights.load_pretrained(Net(), str(tmp_path / "vague.pdparams"))


# Downloads


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder behind a URL, and an empty cache of PaddleDetection's."""
    folder, requests = tmp_path / "served", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            requests.append(self.path)

    handler = functools.partial(Handler, directory=str(folder))
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    httpd.requests = requests
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    monkeypatch.setattr("ppdet.utils.download.WEIGHTS_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield folder, f"http://127.0.0.1:{httpd.server_port}", httpd
    httpd.shutdown()
    httpd.server_close()


def test_a_url_is_downloaded_once_and_then_comes_from_the_cache(server, capfd):
    folder, url, httpd = server
    source = Net()
    paddle.save(source.state_dict(), str(folder / "net.pdparams"))
    weights.load_pretrained(Net(), f"{url}/net.pdparams")
    httpd.shutdown()
    httpd.server_close()
    for load in (weights.load_pretrained, weights.load_weights):
        model = Net()
        load(model, f"{url}/net.pdparams")
        _assert_equal(_arrays(model), _arrays(source))
    assert capfd.readouterr() == ("", "")


DOWNLOADING = """
import sys, time
from pathlib import Path
from ppfcos import environment
with environment.quiet_imports():
    from ppfcos.engine import weights
Path(sys.argv[2]).touch()
while len(list(Path(sys.argv[2]).parent.glob("*.ready"))) < 2:
    time.sleep(0.1)
print(weights._download(sys.argv[1], "pretrain_weights"))
"""


def test_processes_of_a_machine_download_a_file_once(server, tmp_path, root):
    folder, url, httpd = server
    paddle.save({"weight": paddle.ones([1000])}, str(folder / "net.pdparams"))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DOWNLOADING, f"{url}/net.pdparams", tmp_path / f"{number}.ready"],
            cwd=root,
            env={**os.environ, "HOME": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    paths = {process.communicate(timeout=240)[0].splitlines()[-1] for process in processes}
    assert len(paths) == 1 and os.path.isfile(paths.pop())
    assert httpd.requests == ["/net.pdparams"]


def test_a_failed_download_names_the_url_and_a_fix(server, tmp_path):
    _, url, _ = server
    with pytest.raises(
        WeightsError, match=rf"{url}/none\.pdparams cannot be downloaded.*-o pretrain_weights=$"
    ):
        weights.load_pretrained(Net(), f"{url}/none.pdparams")
    with pytest.raises(WeightsError, match=r"http://127\.0\.0\.1:9/net\.pdparams cannot be downloaded"):
        weights.load_pretrained(Net(), "http://127.0.0.1:9/net.pdparams")
    assert not list(tmp_path.glob("cache/*"))


# Going on


@pytest.mark.parametrize("optimizer", [paddle.optimizer.Momentum, paddle.optimizer.AdamW])
@pytest.mark.parametrize("with_average", [False, True])
def test_a_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, optimizer, with_average):
    def start(seed):
        training = _training(seed, optimizer)
        return training, ModelEMA(training[0], decay=0.9) if with_average else None

    straight, average = start(0)
    _steps(*straight, 0, 3, average)
    with ema_weights(straight[0], average) as own:
        averaged = _arrays(straight[0])
        checkpoint.save_checkpoint(
            tmp_path, "3", straight[0].state_dict(), straight[1], TrainingState(3, 7, 0.5), own, average
        )
    _steps(*straight, 3, 6, average)

    resumed, resumed_average = start(1)  # another seed, and other names of the tensors
    state = checkpoint.resume(*resumed[:2], tmp_path / "3.pdparams", resumed_average)
    assert state == TrainingState(3, 7, 0.5)
    if with_average:
        _assert_equal({name: value.numpy() for name, value in resumed_average.weights().items()}, averaged)
    _steps(*resumed, 3, 6, resumed_average)
    _assert_equal(_arrays(resumed[0]), _arrays(straight[0]))
    assert resumed[2].state_dict() == straight[2].state_dict()
    if with_average:
        _assert_equal(
            {name: value.numpy() for name, value in resumed_average.weights().items()},
            {name: value.numpy() for name, value in average.weights().items()},
        )


def test_paddledetection_resumes_ours(tmp_path):
    from ppdet.utils.checkpoint import load_weight

    # PaddleDetection goes by the tensors' own names. A guard numbers them from 0, as a new process does.
    with paddle.utils.unique_name.guard():
        straight = _training(0)
        average = ModelEMA(straight[0])
        _steps(*straight, 0, 3, average)
        with ema_weights(straight[0], average) as own:
            checkpoint.save_checkpoint(
                tmp_path, "3", straight[0].state_dict(), straight[1], TrainingState(3), own, average
            )
        _steps(*straight, 3, 5)
    with paddle.utils.unique_name.guard():
        resumed = _training(1)
        assert load_weight(resumed[0], str(tmp_path / "3"), resumed[1], TheirEMA(resumed[0])) == 3
        _steps(*resumed, 3, 5)
    _assert_equal(_arrays(resumed[0]), _arrays(straight[0]))


def test_ours_resumes_paddledetections(tmp_path):
    from ppdet.utils.checkpoint import save_model

    straight = _training(0)
    _steps(*straight, 0, 3)
    save_model(straight[0].state_dict(), straight[1], str(tmp_path), "3", 3)
    _steps(*straight, 3, 5)
    resumed = _training(1)
    assert checkpoint.resume(*resumed[:2], tmp_path / "3") == TrainingState(3)
    _steps(*resumed, 3, 5)
    _assert_equal(_arrays(resumed[0]), _arrays(straight[0]))


def test_a_checkpoint_of_another_optimizer_or_without_one_is_refused(tmp_path):
    model, optimizer, schedule = _training()
    _steps(model, optimizer, schedule, 0, 1)
    checkpoint.save_checkpoint(tmp_path, "m", model.state_dict(), optimizer, TrainingState(1))
    adam = _training(optimizer=paddle.optimizer.AdamW)
    with pytest.raises(WeightsError, match=r"m\.pdopt is the state of the optimizer Momentum.*AdamW"):
        checkpoint.resume(*adam[:2], tmp_path / "m")
    (tmp_path / "m.pdopt").unlink()
    with pytest.raises(WeightsError, match=r"m\.pdopt cannot be read"):
        checkpoint.resume(*_training()[:2], tmp_path / "m")


VELOCITY = "conv2d_0.w_0_velocity_0"


@pytest.mark.parametrize(
    "change",
    [
        {"last_epoch": [1]}, {"last_epoch": "1"}, {"last_epoch": None}, {"last_epoch": -1},
        {"last_epoch": 1.5}, {"last_epoch": np.ones(2, "f4")}, {"last_epoch": {}}, {"LR_Scheduler": 1},
        {"LR_Scheduler": {}}, {"LR_Scheduler": {"last_epoch": [3], "last_lr": 0.1}},
        {"LR_Scheduler": {"last_epoch": 3, "last_lr": "x"}},
        {"LR_Scheduler": {"last_epoch": 3, "last_lr": float("nan")}},
        {"master_weights": [1]}, {"master_weights": {"linear_0.w_0": 1}}, {VELOCITY: 3}, {VELOCITY: "x"},
        {VELOCITY: np.ones(3, "f4")}, {VELOCITY: np.ones((4, 3, 3, 3), "i8")}, {VELOCITY: {"a": [1]}},
        {"ppfcos": 1}, {"ppfcos": {"optimizer": 5}}, {"ppfcos": {"ema": 1}}, {"ppfcos": {"ema": {}}},
        {"ppfcos": {"ema": {"step": "x", "decay": 0.9, "sums": {}}}},
        {"ppfcos": {"ema": {"step": 1, "decay": None, "sums": {}}}},
        {"ppfcos": {"ema": {"step": 1, "decay": 0.9, "sums": {}}}},
        {"ppfcos": {"ema": {"step": 1, "decay": 0.9, "sums": {"head.bias": "x"}}}},
        {"ppfcos": {"scaler": {"loss_scale": "x", "good_steps": 1}}}, {"ppfcos": {"scaler": {"a": 1}}},
        {"ppfcos": {"scaler": [1]}},
    ],
)  # fmt: skip
def test_an_optimizer_state_with_impossible_values_is_refused(tmp_path, change):
    with paddle.utils.unique_name.guard():
        model, optimizer, schedule = _training()
        _steps(model, optimizer, schedule, 0, 1)
    state = optimizer.state_dict()
    assert VELOCITY in state
    paddle.save({**state, "last_epoch": 1, **change}, str(tmp_path / "m.pdopt"))
    paddle.save(model.state_dict(), str(tmp_path / "m.pdparams"))
    model, optimizer, _ = _training()
    with pytest.raises(WeightsError, match=r"m\.pdopt") as caught:
        checkpoint.resume(model, optimizer, tmp_path / "m", ModelEMA(model))
    assert "\n" not in str(caught.value)


STATE = TrainingState(2, 5, 0.25, "2026-01-01T00:00:00", Plan(12, 9, 16, 4), ["cat", "hát"])


def _saved(folder, name="m", state=STATE):
    model, optimizer, schedule = _training()
    _steps(model, optimizer, schedule, 0, 1)
    checkpoint.save_checkpoint(folder, name, model.state_dict(), optimizer, state)
    return folder / name


def test_a_record_holds_the_training_state(tmp_path):
    assert checkpoint.find_training_state(tmp_path / "m") is None
    path = _saved(tmp_path)
    assert checkpoint.read_manifest(path) == checkpoint.find_training_state(f"{path}.pdparams") == STATE
    checkpoint.note_ap(path, 0.5)
    assert checkpoint.read_manifest(path) == STATE._replace(ap=0.5)
    checkpoint.verify_checksums(path)


@pytest.mark.parametrize("suffix", ["pdparams", "pdopt"])
def test_a_damaged_checkpoint_is_named(tmp_path, suffix):
    path = _saved(tmp_path)
    file = tmp_path / f"m.{suffix}"
    content = file.read_bytes()
    last_byte_flipped = content[:-200] + bytes([content[-200] ^ 1]) + content[-199:]
    for damaged in (last_byte_flipped, content[:-1], content + b" "):
        file.write_bytes(damaged)
        with pytest.raises(WeightsError, match=rf"m\.{suffix} is damaged"):
            checkpoint.verify_checksums(path)
        with pytest.raises(WeightsError, match=rf"m\.{suffix} is damaged"):
            checkpoint.resume(*_training()[:2], path)
    file.unlink()
    with pytest.raises(WeightsError, match=rf"m\.{suffix} cannot be read"):
        checkpoint.verify_checksums(path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', '{"format": 1}', "\udcff"])
def test_a_damaged_manifest_is_named(tmp_path, content):
    path = _saved(tmp_path)
    (tmp_path / "m.json").write_text(content, errors="surrogateescape")
    with pytest.raises(WeightsError, match=r"m\.json"):
        checkpoint.resume(*_training()[:2], path)


def test_a_copy_is_complete_and_independent(tmp_path):
    path = _saved(tmp_path)
    (tmp_path / "best.pdema").write_text("of an earlier one")
    assert checkpoint.copy_checkpoint(path, "best") == tmp_path / "best.pdparams"
    checkpoint.note_ap(path, 0.75)
    weights_of_copy = (tmp_path / "best.pdparams").read_bytes()
    _saved(tmp_path, state=TrainingState(3))
    checkpoint.remove_checkpoint(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.json", "best.pdopt", "best.pdparams"]
    checkpoint.verify_checksums(tmp_path / "best")
    assert (tmp_path / "best.pdparams").read_bytes() == weights_of_copy
    assert checkpoint.read_manifest(tmp_path / "best") == STATE


def test_the_newest_undamaged_checkpoint_is_found(tmp_path, caplog):
    assert run_folder.find_latest(tmp_path / "nowhere") is None
    for number in range(4):
        _saved(tmp_path, str(number), TrainingState(number))
    (tmp_path / "run.json").write_text("[]")  # other files of a run are not mistaken for one
    assert run_folder.find_latest(tmp_path) == tmp_path / "3"
    (tmp_path / "3.pdopt").unlink()
    (tmp_path / "2.json").write_text('{"form')
    with caplog.at_level(logging.WARNING, "ppfcos"):
        assert run_folder.find_latest(tmp_path) == tmp_path / "1"
    assert "3 is skipped" in caplog.text and "2 is skipped" in caplog.text


def test_the_newest_checkpoints_and_the_best_are_kept(tmp_path):
    def saved(name, epochs, step=0, run="now"):
        _saved(tmp_path, name, TrainingState(epochs, step, run=run))
        if run == "now":
            run_folder.remove_old_checkpoints(tmp_path, "now", keep=2)
        return {saved.path.name for saved in checkpoint_files.list_checkpoints(tmp_path)}

    saved("7", 8, run="another run")
    saved("0", 1)
    checkpoint.copy_checkpoint(tmp_path / "0", "best_model")
    stays = {"7", "best_model"}
    assert saved("1_step10", 1, 10) == {"0", "1_step10"} | stays
    assert saved("1_step20", 1, 20) == {"0", "1_step20"} | stays
    assert saved("1", 2) == {"0", "1"} | stays
    assert saved("2", 3) == {"1", "2"} | stays
    assert saved("3_step5", 3, 5) == {"1", "2", "3_step5"} | stays
    run_folder.remove_old_checkpoints(tmp_path, "now", keep=None)
    assert (tmp_path / "1.pdparams").exists()


@pytest.mark.parametrize(
    ("plan", "position", "said"),
    [
        (Plan(12, 100, 16, 8), (3, 50), []),
        (Plan(12, 100, 16, 4), (3, 50), ["4 processes instead of 8: each step is the same"]),
        (Plan(24, 100, 16, 8), (3, 50), ["24 epochs instead of 12"]),
        (
            Plan(12, 400, 4, 8),
            (3, 200),
            ["400 steps of 4 images instead of 100 of 16: going on after step 200"],
        ),
        (Plan(12, 33, 48, 8), (3, 16), ["33 steps of 48 images"]),
    ],
)
def test_another_plan_is_logged_and_the_position_converted(caplog, plan, position, said):
    saved = TrainingState(3, 50, plan=Plan(12, 100, 16, 8))
    with caplog.at_level(logging.INFO, "ppfcos"):
        assert run_folder.position_in_plan(saved, plan) == position
    assert len(caplog.records) == len(said)
    assert all(text in caplog.text for text in said)


def test_ema_weights_of_an_earlier_run_are_removed(tmp_path):
    model, optimizer, _ = _training()
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpoint.save_checkpoint(tmp_path, "m", model.state_dict(), optimizer, TrainingState(1), own)
    assert (tmp_path / "m.pdema").is_file()
    checkpoint.save_checkpoint(tmp_path, "m", model.state_dict(), optimizer, TrainingState(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.json", "m.pdopt", "m.pdparams"]


# Files


@contextlib.contextmanager
def _full_disk(free: int):
    """No file can grow beyond `free` bytes. The kernel says EFBIG then, a full disk ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_an_output_error(tmp_path):
    model, optimizer, schedule = _training()
    _steps(model, optimizer, schedule, 0, 1)
    with _full_disk(100), pytest.raises(OutputError, match=r"model\.pdopt cannot be written: File too large"):
        checkpoint.save_checkpoint(tmp_path, "model", model.state_dict(), optimizer, TrainingState(1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["pdopt", "pdparams", "json"])
def test_a_full_disk_keeps_the_old_checkpoint_of_the_same_name(tmp_path, monkeypatch, suffix):
    """As of model_final, if a finished run is resumed with more epochs."""
    path = _saved(tmp_path)
    (tmp_path / "m.pdema").write_text("of an average that the new one has not")
    checkpoint.copy_checkpoint(_saved(tmp_path, "other", TrainingState(3)), "best_model")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    state = TrainingState(9, class_names=["a class" * 9999] if suffix == "json" else None)
    model, optimizer, schedule = _training()
    if suffix != "pdparams":  # without a step, Momentum has no state that would fill the disk first
        _steps(model, optimizer, schedule, 0, 1)
    free = 5000 if suffix == "json" else 400
    with _full_disk(free), pytest.raises(OutputError, match=rf"m\.{suffix} cannot be written: File too l"):
        checkpoint.save_checkpoint(tmp_path, "m", model.state_dict(), optimizer, state)
    if suffix == "pdopt":
        monkeypatch.setattr(os, "link", lambda *names: os.rename("", ""))  # as on a file system without links
        with _full_disk(free), pytest.raises(OutputError, match=r"best_model\.\w+ cannot be written"):
            checkpoint.copy_checkpoint(path, "best_model")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    checkpoint.verify_checksums(path)


def test_the_check_of_a_folder_leaves_no_trace(tmp_path):
    require_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "a"):
        with pytest.raises(OutputError, match=r"file.* cannot be written to.*-o save_dir="):
            require_writable(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# What a record may be


def _junk(folder):
    """Files x.json that are no record of a checkpoint."""
    path = folder / "x.json"
    yield lambda: path.write_text("junk")
    yield lambda: path.write_bytes(b"\xff\xfe\x00")
    yield lambda: path.write_text("[" * 200_000)
    yield lambda: path.write_text('{"a":' * 200_000)
    yield lambda: path.write_text('{"format": ' + "9" * 5000 + "}")
    yield lambda: path.write_text('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]')
    yield lambda: path.symlink_to("nowhere")
    yield lambda: path.symlink_to("/dev/zero")
    yield lambda: path.symlink_to("x.json")
    yield lambda: os.mkfifo(path)
    yield path.mkdir
    yield lambda: (path.write_text(""), os.truncate(path, 5 << 30))


def test_files_that_are_no_record_are_skipped_and_named(tmp_path, caplog):
    _saved(tmp_path, "0", TrainingState(1))
    for number, write in enumerate(_junk(tmp_path)):
        for beside in (False, True):
            write()
            if beside:
                for suffix in ("pdparams", "pdopt"):
                    shutil.copyfile(tmp_path / f"0.{suffix}", tmp_path / f"x.{suffix}")
            caplog.clear()
            with caplog.at_level(logging.WARNING, "ppfcos"):
                assert run_folder.find_latest(tmp_path) == tmp_path / "0", number
            assert [record.getMessage().count("x.json") for record in caplog.records] == [1]
            assert "\n" not in caplog.records[0].getMessage()
            with pytest.raises(WeightsError, match=r"x\.json") as caught:
                checkpoint.resume(*_training()[:2], tmp_path / "x")
            assert "\n" not in str(caught.value)
            path = tmp_path / "x.json"
            path.rmdir() if path.is_dir() else path.unlink()


def test_records_with_a_flipped_bit_are_skipped(tmp_path, caplog):
    _saved(tmp_path, "0", STATE._replace(epochs=1))
    _saved(tmp_path, "1")
    path = tmp_path / "1.json"
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    caplog.set_level(logging.CRITICAL, "ppfcos")
    for position, bit in {(int(p), int(b)) for p, b in rng.integers([len(content), 8], size=(700, 2))}:
        flipped = bytearray(content)
        flipped[position] ^= 1 << bit
        path.write_bytes(flipped)
        saved = {each.path.name: each.state for each in checkpoint_files.list_checkpoints(tmp_path)}
        assert saved.pop("1", STATE) == STATE and list(saved) == ["0"], (position, bit)


@pytest.mark.parametrize(
    "change",
    [
        {"format": True}, {"format": 3}, {"epochs": -1}, {"epochs": 1.0}, {"epochs": True}, {"epochs": "1"},
        {"step": None}, {"step": 10}, {"ap": "high"}, {"ap": float("nan")}, {"ap": 7}, {"run": 1},
        {"plan": []},
        {"plan": {"epochs": 1}}, {"plan": {**Plan(12, 9, 16, 4)._asdict(), "processes": 0}}, {"written": -1},
        {"written": float("inf")}, {"class_names": "cat"}, {"class_names": [1]}, {"files": []}, {"files": {}},
        {"files": {"/../x": {"bytes": 1, "sha256": "0" * 64}}}, {"files": {".pdopt": {"bytes": 1}}},
        {"files": {".pdopt": {"bytes": 1, "sha256": 5}}}, {"token": "../../x"}, {"start": -1},
    ],
)  # fmt: skip
def test_a_record_with_a_wrong_field_is_skipped(tmp_path, change):
    """Whether or not its checksum is right, and with the format of the first versions, which had none."""
    _saved(tmp_path, "0", STATE._replace(epochs=1))
    record = json.loads((_saved(tmp_path, "1").with_name("1.json")).read_text())
    for format_ in (1, 2):
        wrong = {**record, "format": format_, **change}
        wrong["checksum"] = checkpoint_files._checksum(wrong)
        (tmp_path / "1.json").write_text(json.dumps(wrong))
        if change != {"files": {}}:
            with pytest.raises(WeightsError, match=r"1\.json"):
                checkpoint.read_manifest(tmp_path / "1")
        assert run_folder.find_latest(tmp_path) == tmp_path / "0"


def _as_format_1(path) -> None:
    record = json.loads(path.read_text())
    for key in ("checksum", "token", "start"):
        del record[key]
    path.write_text(json.dumps({**record, "format": 1}, indent=1, ensure_ascii=False))


def test_checkpoints_of_format_1_are_read_and_come_before_newer_ones(tmp_path):
    for name, epochs in (("0", 1), ("1", 2)):
        _saved(tmp_path, name, STATE._replace(epochs=epochs))
        _as_format_1(tmp_path / f"{name}.json")
    assert run_folder.find_latest(tmp_path) == tmp_path / "1"
    assert checkpoint.resume(*_training()[:2], tmp_path / "1") == STATE
    checkpoint.note_ap(tmp_path / "1", 0.5)
    assert checkpoint.read_manifest(tmp_path / "1") == STATE._replace(ap=0.5)
    assert checkpoint_files.next_start(tmp_path) == 1


# The order of checkpoints


def test_the_order_does_not_depend_on_the_clock(tmp_path, monkeypatch):
    now = 2e9
    monkeypatch.setattr("time.time", lambda: now)
    for epochs in range(1, 5):
        now -= 3600
        _saved(tmp_path, str(epochs), TrainingState(epochs, run="a"))
        run_folder.remove_old_checkpoints(tmp_path, "a", keep=1)
        assert run_folder.find_latest(tmp_path) == tmp_path / str(epochs)
    now -= 3600
    _saved(tmp_path, "0", TrainingState(1, run="b"))  # a new training in the same folder
    run_folder.remove_old_checkpoints(tmp_path, "b", keep=1)
    assert run_folder.find_latest(tmp_path) == tmp_path / "0"
    assert (tmp_path / "4.pdparams").exists()


def test_a_training_resumed_from_an_older_checkpoint_is_the_newer_one(tmp_path):
    for epochs in range(1, 6):
        _saved(tmp_path, str(epochs), TrainingState(epochs, run="a"))
    model, optimizer, _ = _training()
    start = checkpoint_files.next_start(tmp_path)
    state = TrainingState(2, 7, run="a")
    checkpoint.save_checkpoint(tmp_path, "again", model.state_dict(), optimizer, state, start=start)
    run_folder.remove_old_checkpoints(tmp_path, "a", keep=1)
    assert run_folder.find_latest(tmp_path) == tmp_path / "again"


def test_a_damaged_newest_checkpoint_does_not_cost_the_one_that_is_resumed(tmp_path):
    for epochs in range(1, 5):
        _saved(tmp_path, str(epochs), TrainingState(epochs, run="a"))
    (tmp_path / "4.pdopt").unlink()
    newest = run_folder.find_latest(tmp_path)
    run_folder.remove_old_checkpoints(tmp_path, "a", 1, newest)
    assert run_folder.find_latest(tmp_path) == newest == tmp_path / "3"
    assert not (tmp_path / "2.json").exists()


# The lock of a folder

LOCKING = (
    "import sys; from pathlib import Path; from ppfcos.engine.run_folder import lock_folder\n"
    "lock = lock_folder(Path(sys.argv[1])); print('locked', flush=True); input()"
)


def test_a_folder_is_locked_until_its_process_ends_in_any_way(tmp_path):
    folder = tmp_path / "run"
    other = subprocess.Popen(
        [sys.executable, "-c", LOCKING, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    while "locked" not in (line := other.stdout.readline()):
        assert line, "it ended"
    with pytest.raises(OutputError, match=rf"run is in use.*process {other.pid} on .*-o save_dir=") as caught:
        run_folder.lock_folder(folder)
    assert "\n" not in str(caught.value)
    (folder / ".lock").write_bytes(b"\x1b[2J\xff")  # whatever it holds
    with pytest.raises(OutputError, match="run is in use"):
        run_folder.lock_folder(folder)
    other.kill()
    other.communicate()
    lock = run_folder.lock_folder(folder)
    assert lock.is_exclusive and run_folder.lock_folder(folder) is lock  # again, in the same process
    child = os.fork()
    if not child:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert (folder / ".lock").exists(), "a forked worker released the lock"
    lock.release()
    assert not list(folder.iterdir())
    run_folder.lock_folder(tmp_path / "new" / "run").release()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/etc/passwd", path)])
def test_an_invalid_lock_file_is_named(tmp_path, make):
    make(tmp_path / ".lock")
    with pytest.raises(OutputError, match=r"\.lock cannot be locked"):
        run_folder.lock_folder(tmp_path)


def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(run_folder, "fcntl", None)
    with caplog.at_level(logging.WARNING, "ppfcos"):
        lock = run_folder.lock_folder(tmp_path)
    assert not lock.is_exclusive and ".lock cannot be locked" in caplog.text
    lock.release()


# Killed while checkpoints are written


def test_a_kill_at_any_change_of_the_folder_loses_nothing(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import crash_points

    level = logging.getLogger("ppfcos").level
    try:
        crash_points.check(every=6, first=1)
    finally:
        logging.getLogger("ppfcos").setLevel(level)
