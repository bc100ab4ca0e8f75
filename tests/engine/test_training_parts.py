"""The engine's parts, each by itself; whole trainings are in test_train.py."""

from __future__ import annotations

import functools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest
from helpers.small_config import write_config
from paddle import nn
from paddle.optimizer.lr import PiecewiseDecay
from ppdet.core.workspace import create
from ppdet.optimizer import ModelEMA as TheirEMA

from ppfcos.config import load_config
from ppfcos.data.datasets import build_dataset
from ppfcos.data.loader import EvalLoader
from ppfcos.data.shapes import generate
from ppfcos.engine import checkpoint, distributed
from ppfcos.engine.amp import Precision
from ppfcos.engine.ema import build_ema, ema_weights, restart_ema_cycle
from ppfcos.engine.evaluator import evaluate, read_detections, write_detections
from ppfcos.engine.model import has_sync_bn_backbone
from ppfcos.engine.optim import build_optimizer, build_schedule
from ppfcos.engine.run_folder import find_latest
from ppfcos.engine.trainer import Trainer
from ppfcos.engine.weights import read_state
from ppfcos.errors import ConfigError, DataError, TrainingError
from ppfcos.metrics.coco import CocoMetrics, evaluate_detections


@pytest.fixture
def shapes(tmp_path):
    """Six generated images to train on and four to evaluate, 96 pixels wide."""
    generate(tmp_path / "shapes", train=6, val=4, size=96, seed=3)
    return tmp_path / "shapes"


@pytest.fixture
def config(tmp_path, shapes, root):
    """Loads a small configuration of these images, with overrides."""
    path = write_config(tmp_path / "small.yml", root, shapes, tmp_path / "output")
    return lambda *overrides: load_config(path, overrides)


def _spoil(picture: Path) -> None:
    picture.write_bytes(picture.read_bytes()[:50])


# Several processes

TOGETHER = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from ppfcos import environment
environment.configure_process()
with environment.quiet_imports():
    import paddle
    from ppfcos.engine import distributed
    from ppfcos.engine.device import select_device
    from ppfcos.engine.prefetcher import Prefetcher
from ppfcos.errors import DataError, OutputError, PPFCOSError

select_device({"device": "cpu"})
distributed.start()
rank = distributed.rank()
seen = {
    "size": distributed.world_size(),
    "main": distributed.is_main(),
    "gathered": distributed.all_gather_object({"rank": rank, "much": list(range(10 + 1000 * rank))}),
    "from_main": distributed.broadcast_object(["said", rank]),
    "rows": distributed.all_gather_rows(paddle.to_tensor([1.0, 2.0 * rank])).tolist(),
    "errors": [],
}
norm = paddle.nn.BatchNorm2D(2)
norm._mean.set_value(paddle.full([2], float(rank + 5)))
norm.weight.set_value(paddle.full([2], float(rank + 5)))
distributed.broadcast_buffers(norm)
seen["buffers"] = norm._mean.tolist() + norm.weight.tolist()
failures = [(1, DataError("no picture")), (0, OutputError("no disk")), (None, DataError("no data"))]
failures += [(1, environment.MissingLibraryError("no library")), (0, MemoryError("Unable to allocate"))]
for failing, error in failures:
    try:
        with distributed.collective_error_check():
            if failing in (rank, None):
                raise error
    except PPFCOSError as caught:
        seen["errors"].append(f"{type(caught).__name__}: {caught}")
with distributed.collective_error_check():
    pass


class Loader:
    def __len__(self):
        return 4

    def set_position(self, epoch, first_step):
        self.epoch = epoch

    def __iter__(self):
        for number in (1, 2, 3):
            if (number, rank) == (3, 1):
                raise DataError("the disk is gone")
            # of the second step, two parts, of another size in each process
            sizes = [(2, 3 + rank), (4 - rank, 1)] if number == 2 else [(2, 2)]
            bad = [f"image {rank}: torn", "image 7: torn"] if number == 2 else []
            news = {"bad_images": bad, "changes": []}
            yield [{"image": paddle.ones([1, 3, *size], "uint8"), **news} for size in sizes]


feed = Prefetcher(Loader(), max_bad_images=3)
feed.start_epoch(5)
seen["batches"] = []
try:
    while feed.current:
        seen["batches"].append([list(part["image"].shape) for part in feed.current])
        seen["pixels"] = [int(part["image"].astype("int64").sum()) for part in feed.current]
        seen["batches"] += feed.advance(paddle.to_tensor([10.0 * rank, 1.0])).tolist()
except DataError as caught:
    seen["errors"].append(str(caught))
(Path(sys.argv[2]) / f"{rank}.json").write_text(json.dumps(seen))
"""


def test_collectives_and_errors_of_two_processes(tmp_path, root):
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    launch = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2"]
    launch += ["--log_dir", str(tmp_path / "log"), str(script), str(root), str(tmp_path)]
    subprocess.run(launch, check=True, capture_output=True, timeout=120, cwd=tmp_path)
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [one.pop("main") for one in seen] == [True, False]
    buffers = [one.pop("buffers") for one in seen]
    assert buffers == [[5, 5, 5, 5], [5, 5, 6, 6]]
    # Padding is zeros: the sums are those of the images alone.
    assert [one.pop("pixels") for one in seen] == [[3 * 2 * 3, 3 * 4 * 1], [3 * 2 * 4, 3 * 3 * 1]]
    assert seen[0] == seen[1]
    assert seen[0] == {
        "size": 2,
        "gathered": [{"rank": rank, "much": list(range(10 + 1000 * rank))} for rank in (0, 1)],
        "from_main": ["said", 0],
        "rows": [[1.0, 0.0], [1.0, 2.0]],
        "errors": [
            "DataError: process 1 of 2: no picture",
            "OutputError: process 0 of 2: no disk",
            "DataError: no data",
            "MissingLibraryError: process 1 of 2: no library",
            "ResourceError: process 0 of 2: there is not enough memory, or the address space is limited: see "
            "`free -g` and `ulimit -v`",
            "process 1 of 2: the disk is gone",
        ],
        "batches": [[[1, 3, 2, 2]], [0.0, 1.0], [10.0, 1.0], [[1, 3, 4, 4], [1, 3, 4, 4]]],
    }


def test_collectives_of_one_process():
    assert (distributed.world_size(), distributed.rank(), distributed.is_main()) == (1, 0, True)
    assert distributed.all_gather_object("x") == ["x"]
    assert distributed.broadcast_object("x") == "x"
    assert distributed.all_gather_rows(paddle.to_tensor([1.0, 3.0])).tolist() == [[1, 3]]
    with pytest.raises(DataError, match=r"^bad$"), distributed.collective_error_check():
        raise DataError("bad")


def test_only_trained_norms_are_synchronized():
    frozen = nn.BatchNorm2D(4, use_global_stats=True)
    model = nn.Sequential(nn.Conv2D(3, 4, 1), nn.BatchNorm2D(4), nn.Sequential(frozen, nn.BatchNorm2D(4)))
    names = list(model.state_dict())
    distributed.convert_sync_batchnorm(model)
    assert [type(layer) for layer in (model[1], model[2][0], model[2][1])] == [
        nn.SyncBatchNorm,
        nn.BatchNorm2D,
        nn.SyncBatchNorm,
    ]
    assert model[2][0] is frozen
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    ("overrides", "synchronized"),
    [
        ((), False),
        (("ResNet.norm_type=sync_bn",), True),
        (("norm_type=sync_bn",), False),  # the configuration gives the backbone a norm of its own
        (("PPFCOSHead.norm_type=sync_bn",), False),
    ],
)
def test_the_norm_type_of_the_backbone_decides_on_sync_bn(config, overrides, synchronized):
    assert has_sync_bn_backbone(config(*overrides)) is synchronized


# Schedule and precision


def test_the_schedule_is_the_configured_one(config):
    cfg = config("LearningRate.base_lr=0.3")
    schedule = build_schedule(cfg, steps_per_epoch=5)
    rates = []
    for _ in range(60):
        rates.append(schedule.get_lr())
        schedule.step()
    expected = [0.3 * (0.1 + 0.9 * step / 3) for step in range(3)] + [0.3] * 37 + [0.03] * 15 + [0.003] * 5
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


@pytest.mark.parametrize("decay", ["PiecewiseDecay", "CosineDecay"])
def test_the_schedule_is_paddledetections_in_every_step(config, decay):
    """Against the very object that PaddleDetection builds, which searches its boundaries one by one."""
    arguments = {"PiecewiseDecay": "gamma: 0.3, milestones: [2, 3]", "CosineDecay": "max_epochs: 4"}[decay]
    schedulers = f"[!{decay} {{{arguments}}}, !LinearWarmup {{start_factor: 0.1, steps: 7}}]"
    cfg = config("epoch=4", "lr_batch_size=null", f"LearningRate.schedulers={schedulers}")
    theirs, ours = create("LearningRate")(10), build_schedule(cfg, 10)
    assert type(theirs) is PiecewiseDecay
    for _ in range(45):
        assert ours.get_lr() == theirs.get_lr()
        ours.step()
        theirs.step()
    assert build_schedule(cfg, 10, 23).state_dict()["last_epoch"] == 23


@pytest.mark.parametrize(
    ("decay", "steps", "milestone"),
    [
        ("{name: PiecewiseDecay, gamma: 0.1, milestones: [2, 3]}", 10, 2),
        ("{name: CosineDecay, max_epochs: 2}", 10, 2),
    ],
)
def test_a_warm_up_beyond_the_first_milestone_is_refused(config, decay, steps, milestone):
    cfg = config(f"LearningRate.schedulers=[{decay}, {{name: LinearWarmup, steps: {steps}}}]")
    with pytest.raises(
        ConfigError, match=rf"warm-up of {steps} steps.*epoch {milestone}.*step {milestone * 5}"
    ):
        build_schedule(cfg, steps_per_epoch=5)
    build_schedule(cfg, steps_per_epoch=6)


def test_a_warm_up_in_epochs_counts_too(config):
    cfg = config(
        "LearningRate.schedulers="
        "[{name: PiecewiseDecay, milestones: [2, 3]}, {name: LinearWarmup, epochs: 2}]"
    )
    with pytest.raises(ConfigError, match="warm-up of 10 steps"):
        build_schedule(cfg, steps_per_epoch=5)


def test_a_schedule_without_its_warm_up_is_a_config_error():
    cfg = {"LearningRate": {"schedulers": [{"name": "PiecewiseDecay", "milestones": [2, 3]}]}}
    with pytest.raises(ConfigError, match=r"LearningRate\.schedulers"):
        build_schedule(cfg, steps_per_epoch=5)


def test_an_impossible_optimizer_is_a_config_error(config):
    cfg = {**config(), "OptimizerBuilder": {"optimizer": {"type": "Momentum", "momentum": None}}}
    with pytest.raises(ConfigError, match="OptimizerBuilder"):
        build_optimizer(cfg, nn.Linear(2, 2), build_schedule(cfg, 5))


# Average


def test_ema_weights_are_used_within_the_block_only():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm2D(2), nn.BatchNorm2D(2, use_global_stats=True))
    for weight in (model[0].bias, model[2].weight, model[2].bias):
        weight.stop_gradient = True
    fixed = {
        name: tensor for name, tensor in model.state_dict().items() if name in ("0.bias",) or name[0] == "2"
    }
    fixed = {name: tensor.numpy() for name, tensor in fixed.items()}
    average = build_ema({"use_ema": True, "ema_decay": 0.5, "ema_decay_type": "normal"}, model)
    moving = (model[0].weight, model[1].weight, model[1]._mean)
    for value in (1.0, 2.0, 4.0):
        for tensor in moving:
            tensor.set_value(paddle.full(tensor.shape, value))
        average.update()
    expected = (1 * 0.125 + 2 * 0.25 + 4 * 0.5) / (1 - 0.5**3)
    with ema_weights(model, average) as own:
        for tensor in moving:
            np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-6)
        np.testing.assert_array_equal(own["0.weight"].numpy(), 4)
        for name, value in fixed.items():
            np.testing.assert_array_equal(model.state_dict()[name].numpy(), value)
    for tensor in moving:
        np.testing.assert_array_equal(tensor.numpy(), 4)


def test_the_ema_restarts_by_epochs_however_often_it_is_used():
    model = nn.Linear(1, 1)
    cfg = {"use_ema": True, "ema_decay": 0.5, "ema_decay_type": "normal", "cycle_epoch": 2}
    average = build_ema(cfg, model)
    seen = []
    for epoch in range(4):
        restart_ema_cycle(average, epoch)
        model.weight.set_value(paddle.full([1, 1], float(epoch)))
        average.update()
        for _ in range(3):
            with ema_weights(model, average):
                seen.append(model.weight.item())
    # Means of the values since the last start, of which each weighs half as much as the one after it.
    means = [0, (0 * 1 + 1 * 2) / 3, 2, (2 * 1 + 3 * 2) / 3]
    np.testing.assert_allclose(seen, np.repeat(means, 3), rtol=1e-6)


@pytest.mark.parametrize("decay_type", ["threshold", "normal", "exponential"])
def test_the_ema_equals_paddledetections_bit_for_bit(decay_type):
    model = nn.Sequential(nn.Conv2D(3, 5, 3), nn.BatchNorm2D(5), nn.Linear(7, 2))
    ours = build_ema({"use_ema": True, "ema_decay": 0.97, "ema_decay_type": decay_type}, model)
    theirs = TheirEMA(model, 0.97, decay_type)
    for _ in range(12):
        for tensor in model.state_dict().values():
            tensor.set_value(paddle.randn(tensor.shape))
        ours.update()
        theirs.update(model)
    ours, theirs = ours.weights(), theirs.apply()
    for name in model.state_dict():
        np.testing.assert_array_equal(ours[name].numpy(), theirs[name].numpy())


# Evaluation


class Oracle(nn.Layer):
    """Returns the annotated boxes in the format of PPFCOS."""

    def __init__(self, data):
        super().__init__()
        label = {category["id"]: label for label, category in enumerate(data.categories)}
        self.truth: dict = {}
        for note in data.coco_ground_truth()["annotations"]:
            if not note["iscrowd"]:
                x, y, width, height = note["bbox"]
                row = [label[note["category_id"]], 0.9, x, y, x + width, y + height]
                self.truth.setdefault(note["image_id"], []).append(row)

    def forward(self, batch):
        assert not self.training
        rows = [self.truth.get(int(number), []) for number in batch["im_id"].numpy().reshape(-1)]
        boxes = np.array([row for image in rows for row in image], dtype="float32").reshape(-1, 6)
        return {
            "bbox": paddle.to_tensor(boxes),
            "bbox_num": paddle.to_tensor(np.array([len(image) for image in rows], dtype="int32")),
        }


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_ground_truth_as_detections_has_ap_one(tinycoco, config, tmp_path, batch_size):
    folder = f"{{name: COCODataSet, dataset_dir: {tinycoco}, image_dir: images/val2017, "
    cfg = config(
        f"EvalDataset={folder}anno_path: annotations/instances_val2017.json, allow_empty: true}}",
        "num_classes=80",
        f"EvalReader.batch_size={batch_size}",
    )
    data = build_dataset(cfg, "EvalDataset")
    oracle = Oracle(data)
    oracle.train()
    figures = evaluate(
        oracle,
        EvalLoader(cfg, data, "EvalReader"),
        data,
        Precision({}, "cpu"),
        uses=[functools.partial(write_detections, tmp_path / "found")],
    )
    assert oracle.training
    assert figures.ap == pytest.approx(1, abs=1e-9)
    found = read_detections(tmp_path / "found")
    assert len(found) == sum(len(rows) for rows in oracle.truth.values())
    assert evaluate_detections(data.coco_ground_truth(), found) == figures
    assert {d["category_id"] for d in found} <= {category["id"] for category in data.categories}


def test_an_unreadable_image_counts_as_one_without_detections(config, shapes, caplog):
    pictures = sorted((shapes / "val2017").iterdir())
    cfg = config()
    data = build_dataset(cfg, "EvalDataset")
    loader = EvalLoader(cfg, data, "EvalReader")
    precision = Precision({}, "cpu")
    assert evaluate(Oracle(data), loader, data, precision).ap == pytest.approx(1, abs=1e-9)
    _spoil(pictures[0])
    with caplog.at_level("WARNING", logger="ppfcos"):
        assert evaluate(Oracle(data), loader, data, precision).ap < 0.99
    assert pictures[0].name in caplog.text
    for picture in pictures[1:]:
        _spoil(picture)
    with pytest.raises(DataError, match="none of the 4 images"):
        evaluate(Oracle(data), loader, data, precision)


def test_an_invalid_file_of_detections_is_named(tmp_path):
    with pytest.raises(DataError, match=r"bbox\.json cannot be read.*--output_eval"):
        read_detections(tmp_path)
    for content in ("{", '{"a": 1}', '[{"bbox": [1, 2, 3, 4]}]'):
        (tmp_path / "bbox.json").write_text(content)
        with pytest.raises(DataError, match=r"bbox\.json(: entry 0)? (is no|cannot be read as JSON)"):
            read_detections(tmp_path)
    write_detections(tmp_path, [])
    assert read_detections(tmp_path) == []


# The trainer


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(config, shapes, tmp_path):
    overrides = (
        "LearningRate.base_lr=1000",
        "lr_batch_size=1",
        "epoch=3",
        "snapshot_steps=1",
        "worker_num=2",
    )
    trainer = Trainer(config(*overrides), "cpu").setup()
    with pytest.raises(TrainingError) as caught:
        trainer.train()
    message = str(caught.value)
    assert "\n" not in message
    found = re.search(
        r"not finite at epoch 1, step ([23]) \(loss_cls .*; learning rate \S+, gradient norm ", message
    )
    assert found, message
    named = re.findall(r"[^ ,]+\.jpg", message)
    assert len(named) == 2
    (file,) = (tmp_path / "output" / "small").glob("*.npz")
    assert str(file) in message
    batch = np.load(file)
    for number, name in enumerate(named):
        image = cv2.imread(str(shapes / "train2017" / Path(name).name))[..., ::-1].transpose(2, 0, 1)
        written = batch["image_0"][number]
        assert np.array_equal(written, image) or np.array_equal(written, image[..., ::-1])
    newest = find_latest(tmp_path / "output" / "small")
    assert newest.name == f"0_step{int(found[1]) - 1}"


def test_endless_float16_overflows_stop_the_run(config, monkeypatch, caplog):
    """A CPU has no float16: gradients that always overflow, and Paddle's loss scale."""

    class Overflowing(Precision):
        scale, handles_overflow = 4.0, True

        def gradient_norm(self, parameters):
            return paddle.to_tensor(math.inf)

        def update(self, optimizer):
            self.scale = max(1.0, self.scale / 2)
            optimizer.clear_grad(set_to_zero=False)

        def state_dict(self):
            return {"loss_scale": self.scale, "good_steps": 0}

    monkeypatch.setattr("ppfcos.engine.nonfinite.MAX_OVERFLOWS", 4)
    monkeypatch.setattr("ppfcos.engine.trainer.Precision", Overflowing)
    with caplog.at_level("INFO", logger="ppfcos"), pytest.raises(TrainingError, match="in 4 steps") as caught:
        Trainer(config("epoch=3"), "cpu").train()
    assert "epoch 2, step 1" in str(caught.value) and "amp_dtype=bfloat16" in str(caught.value)
    assert caplog.text.count("the step is skipped") == 2, "the scale stays at 1"


@pytest.mark.parametrize("frozen", ["true", "false"])
def test_a_few_steps_that_are_not_finite_can_be_skipped(config, tmp_path, caplog, frozen):
    overrides = ("on_nonfinite=skip", "max_nonfinite_steps=2", f"ResNet.freeze_norm={frozen}")
    trainer = Trainer(config(*overrides), "cpu").setup()
    trainer.model.train()
    trainer.prefetcher.start_epoch(0)
    trainer.train_one_step("epoch 1, step 1")
    before = {name: tensor.numpy() for name, tensor in trainer.model.state_dict().items()}
    scale = trainer.model.pixel_scale.clone()
    trainer.model.pixel_scale.set_value(scale * math.nan)
    with caplog.at_level("WARNING", logger="ppfcos"):
        trainer.train_one_step("epoch 1, step 2")
    assert "not finite at epoch 1, step 2" in caplog.text and "skipped, 1 of 2" in caplog.text
    for name, tensor in trainer.model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), before[name], err_msg=name)
    trainer.model.pixel_scale.set_value(scale)
    assert math.isfinite(trainer.train_one_step("epoch 1, step 3").losses["loss"])
    assert trainer.optimizer.get_lr() == build_schedule(trainer.cfg, 3, finished_steps=3).get_lr()
    trainer.model.pixel_scale.set_value(scale * math.nan)
    trainer.prefetcher.start_epoch(1)
    trainer.train_one_step("epoch 2, step 1")
    with pytest.raises(TrainingError, match=r"epoch 2, step 2 .* after 2 that were skipped"):
        trainer.train_one_step("epoch 2, step 2")


def test_a_clipped_gradient_moves_the_weights_by_no_more_than_its_limit(config):
    limit = 1e-3
    overrides = ("OptimizerBuilder.regularizer.factor=0.0", "ResNet.freeze_norm=true")
    trainer = Trainer(config(f"OptimizerBuilder.clip_grad_by_norm={limit}", *overrides), "cpu").setup()
    trainer.model.train()
    trainer.prefetcher.start_epoch(0)
    weights = [(name, weight) for name, weight in trainer.model.named_parameters() if "bias" not in name]
    before = {name: weight.numpy() for name, weight in weights}
    result = trainer.train_one_step("epoch 1, step 1")
    moved = sum(float(((weight.numpy() - before[name]) ** 2).sum()) for name, weight in weights) ** 0.5
    assert result.gradient_norm > 100 * limit, "the norm that is told is that before clipping"
    assert moved == pytest.approx(result.learning_rate * limit, rel=0.05)


def test_the_learning_rate_scales_with_the_batch_and_is_logged(config, caplog):
    assert build_schedule(config(), 10, 5).get_lr() == pytest.approx(0.01)
    for batch, reference, rate in ((2, 16, 0.00125), (2, 1, 0.02), (2, "null", 0.01)):
        cfg = config(f"TrainReader.total_batch_size={batch}", f"lr_batch_size={reference}")
        assert build_schedule(cfg, 10, 5).get_lr() == pytest.approx(rate)
    said = "the learning rate is LearningRate.base_lr times 0.125, since a step takes 2 images"
    with caplog.at_level("INFO", logger="ppfcos"):
        Trainer(config("lr_batch_size=null"), "cpu").setup().before_train()
        assert "LearningRate.base_lr" not in caplog.text
        Trainer(config("lr_batch_size=16"), "cpu").setup().before_train()
    assert said in caplog.text and "lr_batch_size=null leaves the rate alone" in caplog.text


@pytest.mark.parametrize(
    ("every", "within"),
    [
        ("snapshot_steps=2", ["0_step2", "1_step1"]),  # every second step, over the epochs of three
        ("snapshot_minutes=0.000001", ["0_step1", "0_step2", "1_step1", "1_step2"]),
        ("snapshot_minutes=60", []),
    ],
)
def test_a_checkpoint_is_written_every_so_many_steps_or_minutes(config, caplog, every, within):
    with caplog.at_level("INFO", logger="ppfcos"):
        Trainer(config("epoch=2", every), "cpu").train()
    written = re.findall(r"checkpoint: .*/(.*)\.pdparams", caplog.text)
    assert [name for name in written if "step" in name] == within
    assert [name for name in written if "step" not in name] == ["0", "model_final"]


@pytest.mark.parametrize("every", ["snapshot_steps=3", "snapshot_minutes=0.000001"])
def test_a_checkpoint_is_due_at_the_last_step_of_an_epoch_too(config, tmp_path, caplog, every):
    with caplog.at_level("INFO", logger="ppfcos"):
        overrides = ("epoch=3", "snapshot_epoch=3", "keep_checkpoints=null", every)
        Trainer(config(*overrides), "cpu", with_evaluation=True).train()
    written = re.findall(r"checkpoint: .*/(.*)\.pdparams", caplog.text)
    assert [name for name in written if "step" not in name and name != "best_model"] == [
        "0",
        "1",
        "model_final",
    ]
    assert caplog.text.count("after epoch") == 1, "only snapshot_epoch decides on evaluations"
    caplog.clear()
    resumed = Trainer(
        config(*overrides), "cpu", with_evaluation=True, resume=str(tmp_path / "output" / "small" / "1")
    ).setup()
    assert resumed._not_evaluated is None


def test_the_table_of_a_resumed_run_has_all_its_evaluations(config, tmp_path, caplog):
    Trainer(config("epoch=2"), "cpu", with_evaluation=True).train()
    with caplog.at_level("INFO", logger="ppfcos"):
        again = Trainer(config("epoch=3"), "cpu", with_evaluation=True, resume="auto")
        again.train()
    assert [each.epochs for each in again.validation.results] == [1, 2, 3]
    best = max(again.validation.results, key=lambda each: each.metrics.ap)
    assert again.validation.best[1] == best.metrics.ap
    file = tmp_path / "output" / "small" / "evaluations.json"
    content = file.read_text()
    for damaged in ("", "[]", "{}", "null", content[:-9], content.replace("[1,", '["x",')):
        file.write_text(damaged)
        caplog.clear()
        last = Trainer(config("epoch=3"), "cpu", with_evaluation=True, resume="auto").setup()
        last.train()
        assert "evaluations.json is damaged" in caplog.text
        assert last.validation.results == []
    other = Trainer(config("epoch=1"), "cpu", with_evaluation=True)
    other.train()
    assert [each.epochs for each in other.validation.results] == [1]


def test_another_training_in_the_folder_is_not_overwritten_without_a_warning(config, caplog):
    first = Trainer(config(), "cpu")
    with caplog.at_level("INFO", logger="ppfcos"):
        first.train()
        assert "another training" not in caplog.text
        Trainer(config("epoch=2"), "cpu", resume="auto").train()
        assert "another training" not in caplog.text
        Trainer(config(), "cpu").train()
    (warning,) = [each.getMessage() for each in caplog.records if "another training" in each.getMessage()]
    assert first.state.run in warning and "-r auto" in warning and "-o save_dir=" in warning


def test_a_finished_run_says_that_nothing_is_left_to_train(config, tmp_path, caplog):
    Trainer(config(), "cpu").train()
    caplog.clear()
    with caplog.at_level("INFO", logger="ppfcos"):
        Trainer(config(), "cpu", resume="auto").train()
    assert "nothing is left to train" in caplog.text and "-o epoch=2\n" in caplog.text
    decay = "LearningRate.schedulers=[!CosineDecay {max_epochs: 1}, !LinearWarmup {steps: 1}]"
    for finish in ("auto", str(tmp_path / "output" / "small" / "model_final")):
        caplog.clear()
        try:
            with caplog.at_level("INFO", logger="ppfcos"):
                Trainer(config(decay), "cpu", resume=finish).setup().before_train()
            message = caplog.messages[-1]
        except ConfigError as error:
            message = str(error)
        cure = re.search("-o (.*)$", message)[1].split()
        Trainer(config(decay, *cure), "cpu", resume=finish).setup()
    assert "schedule:" not in caplog.text


@pytest.mark.parametrize("number", [0, 1])
def test_more_epochs_than_a_cosine_has_are_refused_with_a_cure(config, tmp_path, number):
    decay = ["{name: CosineDecay, max_epochs: 2, use_warmup: false}", "{name: LinearWarmup, steps: 1}"]
    schedulers = f"LearningRate.schedulers=[{', '.join(decay)}]"
    if number:
        schedulers = "LearningRate.schedulers=[!CosineDecay {max_epochs: 2}, !LinearWarmup {steps: 1}]"
    with pytest.raises(ConfigError, match="CosineDecay reaches a rate of 0 after epoch 2 of 4") as caught:
        Trainer(config("epoch=4", schedulers), "cpu").setup()
    cure = re.search(r"-o (\S+)$", str(caught.value))[1]
    rates = []
    schedule = build_schedule(config("epoch=4", schedulers, cure), 3)
    for _ in range(12):
        rates.append(schedule.get_lr())
        schedule.step()
    assert min(rates[1:]) > 0 and rates[-1] < rates[6]


def test_an_unreadable_image_is_named_once_and_training_goes_on(config, shapes, tmp_path, caplog):
    picture = sorted((shapes / "train2017").iterdir())[0]
    _spoil(picture)
    with caplog.at_level("WARNING", logger="ppfcos"):
        Trainer(config("epoch=2"), "cpu").train()
    warnings = [record.getMessage() for record in caplog.records if picture.name in record.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].startswith("unreadable image 1")
    assert (tmp_path / "output" / "small" / "model_final.pdparams").is_file()


def test_too_many_unreadable_images_stop_the_run(config, shapes, tmp_path):
    _spoil(sorted((shapes / "train2017").iterdir())[0])
    with pytest.raises(DataError, match=r"1 images cannot be read, more than max_bad_images \(0\)"):
        Trainer(config("max_bad_images=0"), "cpu").train()
    assert not list((tmp_path / "output").rglob("*.pdparams"))


def test_fewer_images_than_a_batch_are_an_error_with_both_numbers(config):
    with pytest.raises(DataError, match=r"6 images.*\(8\)"):
        Trainer(config("TrainReader.total_batch_size=8"), "cpu").setup()


def test_a_model_that_cannot_be_built_is_a_config_error(config, tmp_path):
    with pytest.raises(ConfigError, match="'hexp'"):
        Trainer(config("PPFCOSHead.distance=hexp"), "cpu").setup()
    assert not (tmp_path / "output").exists()


def test_ema_weights_are_evaluated_and_saved_with_the_raw_ones(config, tmp_path):
    trainer = Trainer(
        config("use_ema=true", "ema_decay=0.5", "ema_decay_type=normal"), "cpu", with_evaluation=True
    ).setup()
    trainer.train()
    ((epochs, figures),) = trainer.validation.results
    assert epochs == 1 and isinstance(figures, CocoMetrics)
    folder = tmp_path / "output" / "small"
    assert sorted(path.name for path in folder.glob("*model*")) == sorted(
        f"{name}.{suffix}"
        for name in ("best_model", "model_final")
        for suffix in ("json", "pdema", "pdopt", "pdparams")
    )
    own, averaged = (read_state(folder / f"model_final.{suffix}") for suffix in ("pdema", "pdparams"))
    name = "head.class_conv.weight"
    np.testing.assert_array_equal(trainer.model.state_dict()[name].numpy(), own[name])
    assert np.abs(own[name] - averaged[name]).max() > 0
    assert checkpoint.read_manifest(folder / "best_model").ap == figures.ap


def test_a_compiled_network_has_the_same_losses(config):
    losses = []
    for overrides in ((), ("to_static=true",)):
        trainer = Trainer(config("ResNet.freeze_norm=true", *overrides), "cpu").setup()
        trainer.model.train()
        trainer.prefetcher.start_epoch(0)
        losses.append([trainer.train_one_step(f"step {step}").losses for step in range(2)])
    for plain, compiled in zip(*losses):
        assert compiled == pytest.approx(plain, rel=1e-5)
        assert all(math.isfinite(value) for value in plain.values())


def test_points_in_an_ignored_crowd_are_not_background(config, shapes):
    """With a crowd over each whole image, no point is background, and the loss is that of the objects."""
    file = shapes / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    for image in content["images"]:
        whole = [0, 0, image["width"], image["height"]]
        content["annotations"].append(
            {
                "id": 10**6 + image["id"],
                "image_id": image["id"],
                "category_id": 1,
                "bbox": whole,
                "iscrowd": 1,
            }
            | {"area": whole[2] * whole[3]}
        )
    file.write_text(json.dumps(content))
    found = {}
    for ignored in (False, True):
        overrides = (f"PPFCOSTargets.ignore_crowd={ignored}", "PPFCOSHead.prior_prob=0.5")
        trainer = Trainer(config(*overrides), "cpu").setup()
        trainer.model.train()
        trainer.model.head.class_conv.weight.set_value(trainer.model.head.class_conv.weight * 0)
        trainer.prefetcher.start_epoch(0)
        [batch] = trainer.prefetcher.current
        targets = trainer.model.assign(batch)
        positives = len(targets.positives)
        found[ignored] = trainer.train_one_step("step 0").losses
    # Every class is at p = 0.5: it costs 0.25·p²·ln 2 where it is, and 0.75·p²·ln 2 where it is not. Three
    # locations of stride 64, at (96, 32), (32, 96) and (96, 96), lie outside of each of the two pictures.
    here, elsewhere = (share * 0.25 * math.log(2) for share in (0.25, 0.75))
    background = 2 * 3 * 3 * elsewhere
    assert positives > 0
    expected = here + 2 * elsewhere + background / positives
    assert found[True]["loss_cls"] == pytest.approx(expected, rel=1e-5)
    assert found[False]["loss_cls"] > 2 * found[True]["loss_cls"]
    assert found[True]["loss_box"] == pytest.approx(found[False]["loss_box"], rel=1e-5)


def test_another_batch_size_resumes_at_the_same_fraction_of_the_epoch(config, tmp_path, caplog):
    Trainer(config("snapshot_steps=1", "keep_checkpoints=null", "epoch=1"), "cpu").train()
    # Six images: after epoch 1, the second one has 3 steps of 2. Let it be stopped after 1 of them.
    first = Trainer(config("epoch=2", "lr_batch_size=2"), "cpu", resume="auto").setup()
    first.model.train()
    first.prefetcher.start_epoch(1)
    first.train_one_step("epoch 2, step 1")
    first.state = first.state._replace(epochs=1, step=1)
    first.save()
    with caplog.at_level("INFO", logger="ppfcos"):
        cfg = config("epoch=2", "lr_batch_size=2", "TrainReader.total_batch_size=1")
        second = Trainer(cfg, "cpu", resume="auto").setup()
    assert (second.state.epochs, second.state.step) == (1, 2)
    assert "an epoch has 6 steps of 1 images instead of 3 of 2: going on after step 2 of 6" in caplog.text
    assert second.optimizer.get_lr() == pytest.approx(first.optimizer.get_lr() / 2)
    assert f"goes on, as it is configured now, at {second.optimizer.get_lr():.6g}" in caplog.text


def test_more_epochs_follow_the_current_schedule(config, tmp_path, caplog):
    def schedulers(epochs):
        decay = f"{{name: CosineDecay, max_epochs: {epochs}, use_warmup: false}}"
        return f"LearningRate.schedulers=[{decay}, {{name: LinearWarmup, steps: 1}}]"

    Trainer(config("epoch=1", schedulers(2)), "cpu").train()
    with caplog.at_level("INFO", logger="ppfcos"):
        longer = Trainer(config("epoch=3", schedulers(3)), "cpu", resume="auto").setup()
    assert (longer.state.epochs, longer.state.step) == (1, 0)
    assert "3 epochs instead of 1; LearningRate's milestones are where the configuration has" in caplog.text
    # Half a cosine: a half of the rate after half of the epochs, three quarters after a third of them.
    assert longer.optimizer.get_lr() == pytest.approx(0.0075)
    assert "was 0.005 in the checkpoint and goes on, as it is configured now, at 0.0075" in caplog.text
    longer.train()
    assert checkpoint.read_manifest(tmp_path / "output" / "small" / "model_final").epochs == 3
    caplog.clear()
    Trainer(config("epoch=3", schedulers(3)), "cpu", resume=str(tmp_path / "output" / "small" / "1")).setup()
    assert "learning rate was" not in caplog.text, "it goes on as it was"
    assert longer.optimizer.get_lr() == pytest.approx(0, abs=1e-9)


def test_other_classes_are_not_resumed(config, shapes, tmp_path):
    Trainer(config(), "cpu").train()
    for split in ("train2017", "val2017"):
        path = shapes / "annotations" / f"instances_{split}.json"
        path.write_text(path.read_text().replace('"circle"', '"disc"'))
    with pytest.raises(DataError, match="disc"):
        Trainer(config("epoch=2"), "cpu", resume="auto").setup()


def test_a_finished_run_is_not_resumed(config, tmp_path):
    Trainer(config(), "cpu").train()
    with pytest.raises(ConfigError, match=r"has finished all 1 epochs.*-o epoch=2"):
        Trainer(config(), "cpu", resume=str(tmp_path / "output" / "small" / "model_final")).setup()
