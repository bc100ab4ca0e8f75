"""Configuration files: what they may say, how they inherit, and what is said about a mistake."""

from __future__ import annotations

import argparse
import copy
import re
from pathlib import Path

import numpy as np
import paddle
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ppdet.core.config.schema import SchemaDict
from ppdet.core.workspace import create, dict_merge, global_config

from ppfcos.cli import command
from ppfcos.config import load_config
from ppfcos.config.files import apply_override, read_file
from ppfcos.config.keys import REFUSED_TRANSFORMS
from ppfcos.data.transforms.uint8 import find_transform
from ppfcos.engine.model import build_model
from ppfcos.errors import ConfigError, hint

SHIPPED = ("fcos_r50_fpn_1x_coco", "fcos_r50_fpn_multiscale_2x_coco", "fcos_r18_bccd", "fcos_demo_shapes")
LEAST = "architecture: PPFCOS\nnum_classes: 3\n"


@pytest.fixture
def write(tmp_path):
    """Write a file and give its path."""

    def write(text, name="run.yml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(path, *overrides):
    """The message with which a configuration is refused, which must be one line."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


# The shipped files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_load_and_build_every_part(root, name):
    cfg = load_config(root / "configs" / f"{name}.yml", ["PPFCOSHead.num_convs=1"])
    assert cfg["filename"] == name
    model = create(cfg["architecture"])
    assert model.head.num_classes == cfg["num_classes"]
    create("OptimizerBuilder")(create("LearningRate")(step_per_epoch=10), model)


def test_every_file_under_configs_is_yaml_that_some_configuration_uses_or_is_one(root):
    used = set()

    def follow(path):
        used.add(path.resolve())
        bases = yaml.load(path.read_text(encoding="utf-8"), Loader=_Lenient).get("_BASE_", [])
        for base in bases:
            follow(path.parent / base)

    for path in (root / "configs").glob("fcos_*.yml"):
        follow(path)
    unused = {path.resolve() for path in (root / "configs").rglob("*.yml")} - used
    # for users with data in that layout, or too little of it
    examples = {"voc.yml", "yolo.yml", "joined.yml", "fcos_reader_strong.yml"}
    assert {path.name for path in unused} == examples


def test_voc_file_lists_pascals_classes_in_alphabetical_order(root, write):
    path = write(f"_BASE_: {root / 'configs' / 'datasets' / 'voc.yml'}\narchitecture: PPFCOS\n")
    cfg = load_config(path)
    names = cfg["TrainDataset"]["class_names"]
    assert names == sorted(names)
    assert len(set(names)) == cfg["num_classes"] == 20
    assert cfg["EvalDataset"]["class_names"] == cfg["TestDataset"]["class_names"] == names


class _Lenient(yaml.SafeLoader):
    """Takes every tag for its plain value."""


_Lenient.add_multi_constructor("!", lambda loader, suffix, node: None)


# Values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        ("-2.5e+1", -25.0),
        (".5e1", 5.0),
        ("3.", 3.0),
        ("0.1", 0.1),
        ("12", 12),
        ("2026-01-02", "2026-01-02"),
        ("true", True),
        ("null", None),
        ("", None),
        ("'1e-4'", "1e-4"),
        ("e4", "e4"),
        ("[1, 2]", [1, 2]),
    ],
)
def test_values_in_files_and_overrides_are_read_alike(write, text, value):
    path = write(LEAST + f"PPFCOSDecode:\n  score_threshold: {text}\n")
    config = read_file(str(path), ())
    in_file = config["PPFCOSDecode"]["score_threshold"]
    apply_override(config, f"PPFCOSDecode.score_threshold={text}", ())
    overridden = config["PPFCOSDecode"]["score_threshold"]
    assert in_file == overridden == value
    assert type(in_file) is type(overridden) is type(value)


def test_tags_of_schedules_and_datasets_become_names(write):
    path = write(
        LEAST + "LearningRate:\n  schedulers:\n  - !PiecewiseDecay {milestones: [3], gamma: 0.1}\n"
        "  - !LinearWarmup\nEvalDataset: !ImageFolder\n  image_dir: pictures\n"
    )
    cfg = load_config(path)
    assert cfg["LearningRate"]["schedulers"] == [
        {"name": "PiecewiseDecay", "milestones": [3], "gamma": 0.1},
        {"name": "LinearWarmup"},
    ]
    assert cfg["EvalDataset"] == {"name": "ImageFolder", "image_dir": "pictures"}


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch {witness}']",
        "!!python/object/new:os.system ['touch {witness}']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!Callable {{full_type: os.system, args: ['touch {witness}']}}",
        "!Resize {{target_size: 3}}",
        "!PiecewiseDecay [1, 2]",
        "!PiecewiseDecay {{name: LinearWarmup}}",
    ],
)
def test_nothing_in_a_file_or_override_runs(write, tmp_path, value):
    witness = tmp_path / "witness"
    value = value.format(witness=witness)
    path = write(LEAST + f"save_dir: {value}\n")
    assert f"{path}:3: " in refusal(path)
    assert refusal(write(LEAST), f"save_dir={value}").startswith("-o save_dir=!")
    assert not witness.exists()


def test_sections_that_share_an_anchor_do_not_share_their_values(write):
    path = write(
        LEAST + "EvalReader: &reader\n  sample_transforms: [Decode: {}, Permute: ]\n  batch_size: 1\n"
        "TestReader: *reader\n"
    )
    cfg = load_config(path, ["EvalReader.batch_size=4"])
    assert (cfg["EvalReader"]["batch_size"], cfg["TestReader"]["batch_size"]) == (4, 1)
    assert cfg["TestReader"]["sample_transforms"] == [{"Decode": {}}, {"Permute": {}}]
    cfg["EvalReader"]["sample_transforms"].clear()
    assert len(cfg["TestReader"]["sample_transforms"]) == 2


@pytest.mark.parametrize("way", ["file", "-o"])
@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("save_dir", "2024", "2024"),
        ("save_dir", "007", "007"),
        ("save_dir", "1e3", "1e3"),
        ("save_dir", "on", "on"),
        ("filename", "5", "5"),
        ("output_eval", "2026", "2026"),
        ("output_eval", "null", None),
        ("weights", "1_0", "1_0"),
        ("device", "0", "0"),
        ("ema_black_list", "[1, 0x1]", ["1", "0x1"]),
        ("TrainDataset.image_dir", "2024", "2024"),
        (
            "TrainDataset.class_names",
            "[yes, no, on, off, 007, 1e3, null, y]",
            ["yes", "no", "on", "off", "007", "1e3", "null", "y"],
        ),
    ],
)
def test_text_stays_text(write, way, key, text, value):
    """Text that YAML reads as a number, true or false."""
    section, _, name = key.rpartition(".")
    lines = f"{section}:\n  name: PPFCOSVOCDataSet\n  {name}: {text}\n" if section else f"{key}: {text}\n"
    path = write(LEAST + (lines if way == "file" else lines.replace(f"{name}: {text}\n", "")))
    cfg = load_config(path, [] if way == "file" else [f"{key}={text}"])
    assert (cfg[section] if section else cfg)[name] == value


@pytest.mark.parametrize("folder", ["2026", "null", "007", "yes", "a: b", "[x", "bild # 1", "größe 😀"])
def test_options_stay_text(root, folder):
    options = argparse.Namespace(opt=[], output_eval=folder, classwise=True, amp=None)
    overrides = command.overrides(options, "output_eval", "classwise", "amp")
    cfg = load_config(root / "configs" / "fcos_r18_bccd.yml", overrides)
    assert (cfg["output_eval"], cfg["classwise"]) == (folder, True)


# Inheritance ---------------------------------------------------------------------------------------------


def test_later_bases_win_and_the_file_wins_over_them(write, tmp_path):
    write("epoch: 1\nlog_iter: 1\nResNet: {depth: 18, freeze_at: 0}\n", "first.yml")
    write("_BASE_: ../first.yml\nepoch: 2\nResNet: {freeze_at: 1}\n", "deep/second.yml")
    write("log_iter: 3\n", "third.yml")
    path = write(
        f"_BASE_: [first.yml, deep/second.yml, {tmp_path / 'third.yml'}]\n" + LEAST + "ResNet: {variant: d}"
    )
    cfg = load_config(path)
    assert (cfg["epoch"], cfg["log_iter"]) == (2, 3)
    assert dict(cfg["ResNet"]) == {"depth": 18, "freeze_at": 1, "variant": "d"}


def test_base_in_the_home_folder(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write("epoch: 7\n", "home/base.yml")
    assert load_config(write("_BASE_: ['~/base.yml']\n" + LEAST))["epoch"] == 7


def test_lists_and_tagged_mappings_replace_and_other_names_do_too(write):
    write(
        "LearningRate:\n  schedulers: [!PiecewiseDecay {gamma: 0.1}, !LinearWarmup {steps: 5}]\n"
        "TrainDataset: !COCODataSet {anno_path: a.json, allow_empty: true}\n"
        "EvalDataset: {name: COCODataSet, anno_path: a.json, allow_empty: true}\n"
        "TestDataset: {name: COCODataSet, anno_path: a.json}\n",
        "base.yml",
    )
    cfg = load_config(
        write(
            "_BASE_: base.yml\n" + LEAST + "LearningRate:\n"
            "  schedulers: [!CosineDecay {max_epochs: 9, use_warmup: false}]\n"
            "TrainDataset: !COCODataSet {anno_path: b.json}\n"
            "EvalDataset: {anno_path: b.json}\n"
            "TestDataset: {name: ImageFolder}\n"
        )
    )
    decay = {"name": "CosineDecay", "max_epochs": 9, "use_warmup": False}
    assert cfg["LearningRate"]["schedulers"] == [decay]
    assert cfg["TrainDataset"] == {"name": "COCODataSet", "anno_path": "b.json"}
    assert cfg["EvalDataset"] == {"name": "COCODataSet", "anno_path": "b.json", "allow_empty": True}
    assert cfg["TestDataset"] == {"name": "ImageFolder"}


integers = st.integers(-(2**63), 2**63)
trees = st.recursive(
    integers | st.booleans() | st.lists(integers, max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=8,
)
files = st.lists(st.dictionaries(st.sampled_from("abcd"), trees, max_size=3), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(files=files)
def test_files_merge_as_paddledetection_merges(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("merge")
    for number, content in enumerate(files):
        bases = {"_BASE_": [f"{n}.yml" for n in range(number)]} if number == len(files) - 1 else {}
        (folder / f"{number}.yml").write_text(yaml.safe_dump({**bases, **content}))
    expected = {}
    for content in files:
        dict_merge(expected, copy.deepcopy(content))
    assert read_file(str(folder / f"{len(files) - 1}.yml"), ()) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 1\n_BASE_: nowhere.yml\n", "run.yml:2: _BASE_ names nowhere.yml, but "),
        ("_BASE_: [3]\n", "run.yml:1: _BASE_ should be a path or a list of"),
        ("_BASE_: run.yml\n", "its _BASE_ leads back to itself"),
        ("_BASE_: other.yml\n", "other.yml -> "),
        ("epoch: 1\nseed: 1\nepoch: 2\n", "run.yml:3: 'epoch' occurs twice, first at "),
        ("ResNet:\n  depth: 18\n  depth: 50\n", "run.yml:3: 'depth' occurs twice"),
        ("epoch: [1\n", "this is not YAML"),
        ("- epoch\n", "a configuration is a mapping of keys to values"),
        ("1: 2\n", "and '1' is not"),
        ("? [a]\n: 2\n", "and a list or a mapping is not"),
        ("a: &a [*a]\n", "contains itself"),
        ("epoch: \x00\n", "this is not YAML"),
        ("", "run.yml: the key 'architecture' is missing"),
    ],
)
def test_files_that_cannot_be_read(write, text, said):
    write("_BASE_: run.yml\n", "other.yml")
    assert said in refusal(write(text))


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    assert refusal(tmp_path / "none.yml") == f"{tmp_path / 'none.yml'}: there is no such configuration file"
    assert refusal(tmp_path) == f"{tmp_path}: this is a folder; name a configuration file in it"
    (tmp_path / "weights.pdparams").write_bytes(b"\x80\x02\xff\xfe")
    assert "cannot be read" in refusal(tmp_path / "weights.pdparams")


def test_a_file_may_be_reached_on_two_ways(write):
    write("epoch: 4\n", "common.yml")
    write("_BASE_: common.yml\nseed: 1\n", "left.yml")
    write("_BASE_: common.yml\nlog_iter: 2\n", "right.yml")
    cfg = load_config(write("_BASE_: [left.yml, right.yml]\n" + LEAST))
    assert (cfg["epoch"], cfg["seed"], cfg["log_iter"]) == (4, 1, 2)


# Overrides -----------------------------------------------------------------------------------------------


def test_overrides_reach_keys_sections_lists_and_what_no_file_mentions(root):
    cfg = load_config(
        root / "configs" / "fcos_r50_fpn_1x_coco.yml",
        [
            "epoch=3",
            "weights=output/best_model",
            "TrainReader.sample_transforms.1.Resize.target_size=[320,320]",
            "LearningRate.schedulers.1.steps=7",
            "LearningRate.base_lr=1e-3",
            "PPFCOSHead={num_convs: 2}",
            "PPFCOSDecode.keep_top_k=5",
            "OptimizerBuilder.clip_grad_by_norm=35.0",
            "use_gpu=false",
            "vdl_log_dir=a=b",
            "epoch=4",
        ],
    )
    assert (cfg["epoch"], cfg["weights"], cfg["use_gpu"]) == (4, "output/best_model", False)
    assert cfg["TrainReader"]["sample_transforms"][1] == {
        "Resize": {"target_size": [320, 320], "keep_ratio": True, "interp": 1, "rounding": "nearest"}
    }
    assert cfg["LearningRate"]["schedulers"][1]["steps"] == 7
    assert cfg["LearningRate"]["base_lr"] == 1e-3
    assert cfg["PPFCOSHead"]["num_convs"] == 2
    assert cfg["PPFCOSHead"]["prior_prob"] == 0.01  # kept: a mapping merges
    assert cfg["PPFCOSDecode"]["keep_top_k"] == 5
    assert cfg["OptimizerBuilder"]["clip_grad_by_norm"] == 35.0
    assert cfg["vdl_log_dir"] == "a=b"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("epoch", "-o epoch: write it as key=value or section.key=value"),
        ("=3", "-o =3: write it as key=value or section.key=value"),
        ("ResNet..depth=3", "-o ResNet..depth=3: write it as"),
        (".epoch=3", "write it as"),
        ("epoch={", "-o epoch={: this is not YAML: "),
        (
            "EvalReader.sample_transforms.9={Decode: {}}",
            "-o: '9' is not an index of EvalReader.sample_transforms",
        ),
        ("EvalReader.sample_transforms.first.x=1", "'first' is not an index of EvalReader.sample_transforms"),
        (
            "PPFCOS.backbone.depth=18",
            "-o: PPFCOS.backbone is 'ResNet', which has no keys: set those of ResNet",
        ),
        ("epoch.x=1", "-o: epoch is 12, which has no keys"),
    ],
)
def test_overrides_that_lead_nowhere(root, override, said):
    assert said in refusal(root / "configs" / "fcos_r18_bccd.yml", override)


# Checks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("epochs: 3", 3, "unknown key 'epochs'; did you mean 'epoch'?"),
        ("ppfcoshead: {num_convs: 2}", 3, "unknown key 'ppfcoshead'; did you mean 'PPFCOSHead'?"),
        ("SwinTransformer: {pretrained: http://127.0.0.1:9/x.tar}", 3, "set pretrain_weights instead"),
        ("PPFCOSHead:\n  num_conv: 2", 4, "unknown key 'PPFCOSHead.num_conv'; did you mean 'num_convs'?"),
        ("ResNet: 50", 3, "ResNet is a section"),
        ("PPFCOS: {backbone: ResNett}", 3, "PPFCOS.backbone: no class 'ResNett' is registered"),
        (
            "PPFCOS: {decode: {name: PPFCOSDecode, nms_treshold: 1}}",
            3,
            "unknown key 'PPFCOS.decode.nms_treshold'; did you mean 'nms_threshold'?",
        ),
        ("PPFCOS: {loss: {focal_alpha: 1}}", 3, "PPFCOS.loss lacks `name`"),
        ("PPFCOS: {loss: {name: PPFCOSLos}}", 3, "PPFCOS.loss.name: no class 'PPFCOSLos' is registered"),
        ("TrainReader: {shufle: true}", 3, "unknown key 'TrainReader.shufle'; did you mean 'shuffle'?"),
        ("TrainReader: {shuffle: 1}", 3, "TrainReader.shuffle should be true or false, and is 1"),
        ("TrainReader: {batch_size: 2}", 3, "set TrainReader.total_batch_size"),
        ("EvalReader: {batch_size: 0}", 3, "EvalReader.batch_size should be a whole number from 1"),
        (
            "EvalReader:\n  sample_transforms:\n  - Decode: {}\n  - Resize:\n      targetsize: 3",
            7,
            "unknown key 'EvalReader.sample_transforms.1.Resize.targetsize'; did you mean 'target_size'?",
        ),
        (
            "EvalReader:\n  sample_transforms:\n  - Decod: {}",
            5,
            "unknown transform 'EvalReader.sample_transforms.0.Decod'; did you mean 'Decode'?",
        ),
        ("EvalReader: {sample_transforms: [Decode]}", 3, "should be a transform with its arguments"),
        (
            "EvalReader:\n  sample_transforms:\n  - NormalizeImage: {is_scale: true}",
            5,
            "PPFCOS normalizes on the device",
        ),
        ("EvalReader: {batch_transforms: [NormalizeImage: {}]}", 3, "normalizes on the device"),
        ("TrainReader: {batch_transforms: [Gt2FCOSTarget: {}]}", 3, "assigns targets on the device"),
        ("TrainReader: {batch_transforms: [BatchRandomResize: {}]}", 3, "unknown transform"),
        (
            "TrainReader: {sample_transforms: [RandomSelect: {transforms1: [Decodee: {}], transforms2: []}]}",
            3,
            "'TrainReader.sample_transforms.0.RandomSelect.transforms1.0.Decodee'; did you mean 'Decode'?",
        ),
        ("TrainDataset: {dataset_dir: x}", 3, "TrainDataset lacks `name`"),
        ("TrainDataset: {name: COCODataset}", 3, "no data set 'COCODataset'; did you mean 'COCODataSet'?"),
        ("TrainDataset: !COCODataSet\n  anno: x", 4, "unknown key 'TrainDataset.anno'"),
        ("TestDataset: {name: ImageFolder, label: x}", 3, "unknown key 'TestDataset.label'"),
        (
            "LearningRate: {schedulers: [{name: PiecewiseDecay, milestone: [8]}]}",
            3,
            "unknown key 'LearningRate.schedulers.0.milestone'; did you mean 'milestones'?",
        ),
        ("LearningRate: {schedulers: [{name: StepDecay}]}", 3, "LearningRate.schedulers.0: no schedule"),
        ("LearningRate: {lr: 1}", 3, "unknown key 'LearningRate.lr'"),
        ("OptimizerBuilder: {optimizer: {type: Momentun}}", 3, "did you mean 'Momentum'?"),
        ("OptimizerBuilder: {optimizer: {type: SGD, momentum: 0.9}}", 3, "unknown key"),
        (
            "OptimizerBuilder: {optimizer: {type: SGD, weight_decay: 0.1}}",
            3,
            "weight_decay would be ignored: set OptimizerBuilder.regularizer.factor",
        ),
        (
            "OptimizerBuilder: {optimizer: {type: SGD, param_groups: [{params: [bias], weight_decay: 0}]}}",
            3,
            "param_groups.0.weight_decay should be a decimal",
        ),
        ("OptimizerBuilder: {regularizer: {type: L3, factor: 1}}", 3, "regularizer.type should be L1 or L2"),
        ("epoch: 1.5", 3, "epoch should be a whole number from 1 to 100,000, and is 1.5"),
        ("epoch: true", 3, "epoch should be a whole number from 1 to 100,000, and is true"),
        ("seed: abc", 3, "seed should be a whole number from 0 to 4,294,967,295 or null, and is 'abc'"),
        ("save_dir: [3]", 3, "save_dir should be text, and is [3]"),
        ("save_dir: null", 3, "save_dir should be text, and is null"),
        ("use_ema: 1", 3, "use_ema should be true or false, and is 1"),
        ("ema_decay: 1.5", 3, "ema_decay should be a number from 0 to 1, and is 1.5"),
        ("ema_black_list: [[1]]", 3, "ema_black_list should be a list of texts or null"),
        ("metric: VOC", 3, "metric should be COCO, and is 'VOC'"),
        ("coco_eval: fast", 3, "coco_eval should be faster_coco_eval or pycocotools, and is 'fast'"),
        ("amp_level: O3", 3, "amp_level should be O1 or O2"),
        ("export: 3", 3, "export should be a part of {post_process: true, nms: true"),
        ("export: {nms: false}", 3, "export should be a part of {post_process: true, nms: true"),
        ("zzz: 3", 3, "unknown key 'zzz'"),
    ],
)
def test_mistakes_are_named_with_file_line_key_and_cure(write, text, line, said):
    path = write(LEAST + text + "\n")
    message = refusal(path)
    assert message.startswith(f"{path}:{line}: ")
    assert said in message


@pytest.mark.parametrize(
    ("name", "valid", "suggestion"),
    [
        ("map_type", ["amp_dtype", "metric"] * 9, ""),
        ("StepDecay", ["CosineDecay"] * 14, ""),
        ("epochs", ["epoch", "seed"], "epoch"),
        ("PPFCOSHaed", ["PPFCOSHead"], "PPFCOSHead"),
        ("--ouput_dir", ["--output_dir", "--opset"], "--output_dir"),
    ],
)
def test_a_suggestion_is_similar(name, valid, suggestion):
    text = hint(name, valid)
    assert f"'{suggestion}'" in text if suggestion else "did you mean" not in text


@pytest.mark.parametrize(
    ("wrong", "remedy", "right"),
    [
        ("epochs=3", "'epoch'", "epoch=3"),
        ("TrainReader.batch_size=2", "set TrainReader.total_batch_size", "TrainReader.total_batch_size=2"),
        ("EvalReader.total_batch_size=2", "set EvalReader.batch_size", "EvalReader.batch_size=2"),
        ("architecture=FCOS", "set architecture: PPFCOS", "architecture=PPFCOS"),
        ("architecture=ResNet", "set architecture: PPFCOS", "architecture=PPFCOS"),
        ("PPFCOS.head=FCOSHead", "set PPFCOSHead", "PPFCOS.head=PPFCOSHead"),
        ("PPFCOS.backbone.depth=18", "set those of ResNet", "ResNet.depth=18"),
        ("ResNet.pretrained=a.pdparams", "set pretrain_weights", "pretrain_weights=a.pdparams"),
        ("PPFCOSTargets.size_ranges=[64]", "set 4 limits", "PPFCOSTargets.size_ranges=[64,128,256,512]"),
        (
            "OptimizerBuilder.optimizer.weight_decay=0.1",
            "set OptimizerBuilder.regularizer.factor",
            "OptimizerBuilder.regularizer.factor=0.1",
        ),
        ("TrainDataset.name=MOTImageFolder", "use ImageFolder", "TestDataset={name: ImageFolder}"),
    ],
)
def test_the_remedy_of_an_error_works(root, wrong, remedy, right):
    path = root / "configs" / "fcos_r18_bccd.yml"
    assert remedy in refusal(path, wrong)
    build_model(load_config(path, [right, "PPFCOSHead.num_convs=1", "PPFCOSFPN.out_channels=32"]))


def test_refused_transforms_name_one_that_exists(root):
    path, named = root / "configs" / "fcos_r18_bccd.yml", set()
    for name in REFUSED_TRANSFORMS:
        message = refusal(path, f"TrainReader.sample_transforms=[{name}: {{}}]")
        found = re.search(r"use (PPFCOS\w+|Decode|Resize|RandomColorJitter)", message)
        assert found or "remove it" in message, message
        named |= {found[1]} if found else set()
    assert named and all(hasattr(find_transform(name), "apply") for name in named)


def test_what_says_the_same_in_paddledetections_words_is_understood(write):
    path = write(
        LEAST + "use_gpu: false\nuse_xpu: false\nexport: {post_process: True, nms: True, benchmark: False}\n"
        "OptimizerBuilder: {regularizer: null, optimizer: {type: AdamW, weight_decay: 0.05}}\n"
    )
    cfg = load_config(path)
    assert cfg["use_gpu"] is cfg["use_xpu"] is False
    assert cfg["OptimizerBuilder"]["optimizer"] == {"type": "AdamW", "weight_decay": 0.05}


def test_a_mistake_in_a_base_file_is_put_down_to_it(write, tmp_path):
    write("ResNet:\n  depth: 18\n  frezee_at: 0\n", "base.yml")
    path = write("_BASE_: base.yml\n" + LEAST + "ResNet: {depth: 50}\n")
    assert refusal(path).startswith(f"{tmp_path / 'base.yml'}:3: unknown key 'ResNet.frezee_at'")
    assert refusal(path, "ResNet.frezee_at=1").startswith("-o: unknown key 'ResNet.frezee_at'")


# The workspace -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["one after the other", "interleaved"])
def test_two_configurations_in_one_process(root, order):
    paths = (root / "configs" / "fcos_r18_bccd.yml", root / "configs" / "fcos_mobilenetv2_fpn_1x_coco.yml")
    small = ["PPFCOSHead.num_convs=1", "PPFCOSFPN.out_channels=32"]
    overrides = ([*small, "PPFCOSDecode.keep_top_k=7"], small)
    if order == "interleaved":
        configs = [load_config(*each) for each in zip(paths, overrides)]
        models = [build_model(cfg) for cfg in [*configs, configs[0]]]
    else:
        models = [
            build_model(load_config(*each)) for each in [*zip(paths, overrides), (paths[0], overrides[0])]
        ]
    parts = [(type(each.backbone).__name__, each.head.num_classes, each.decode.keep_top_k) for each in models]
    assert parts == [("ResNet", 3, 7), ("PPFCOSMobileNetV2", 80, 100), ("ResNet", 3, 7)]


def test_a_change_of_one_configuration_does_not_reach_another(root):
    path = root / "configs" / "fcos_r18_bccd.yml"
    first, second = load_config(path), load_config(path)
    first["TrainReader"]["sample_transforms"].clear()
    first["PPFCOSHead"]["num_convs"] = 1
    first["num_classes"] = 5
    assert second["TrainReader"]["sample_transforms"] and second["PPFCOSHead"]["num_convs"] == 4
    assert second["num_classes"] == 3


def test_loads_do_not_mix(write):
    first = write(
        LEAST + "seed: 5\nResNet: {depth: 34, freeze_at: -1}\nTrainDataset: !ImageFolder {}\n", "a.yml"
    )
    second = write(LEAST, "b.yml")
    load_config(first)
    cfg = load_config(second)
    assert cfg["filename"] == "b"
    assert "seed" not in cfg
    assert dict(cfg["ResNet"]) == {}
    assert cfg["ResNet"]["depth"] == 50  # PaddleDetection's default
    assert isinstance(cfg["TrainDataset"], SchemaDict) and not cfg["TrainDataset"]


def test_what_create_writes_into_the_workspace_does_not_outlive_the_next_load(write):
    path = write(LEAST + "PPFCOS: {decode: {name: PPFCOSDecode, keep_top_k: 7}}\nResNet: {depth: 18}\n")
    load_config(path)
    assert create("PPFCOS").decode.keep_top_k == 7
    assert load_config(write(LEAST, "plain.yml"))["PPFCOSDecode"]["keep_top_k"] == 100


def test_parts_of_the_architecture_may_be_written_in_place(write):
    cfg = load_config(write(LEAST + "PPFCOS: {backbone: {name: ResNet, depth: 18, return_idx: [1, 2, 3]}}\n"))
    assert cfg["PPFCOS"]["backbone"] == "ResNet"
    assert dict(cfg["ResNet"]) == {"depth": 18, "return_idx": [1, 2, 3]}


def test_a_class_that_something_overwrote_comes_back(write):
    path = write(LEAST)
    load_config(path)
    global_config["TrainDataset"] = object()
    assert isinstance(load_config(path)["TrainDataset"], SchemaDict)


def test_a_load_that_fails_leaves_the_workspace_alone(write):
    cfg = load_config(write(LEAST + "seed: 5\n"))
    refusal(write(LEAST + "seed: x\n", "wrong.yml"))
    assert global_config["seed"] == cfg["seed"] == 5


# What the optimizer's section means ----------------------------------------------------------------------


def test_biases_learn_twice_as_fast_and_do_not_decay(root):
    """The updates of SGD with momentum and L2 decay, by hand, against those of `_base_/optimizer_1x.yml`."""
    decay, momentum, rate = 0.1, 0.9, 0.05
    standard = root / "configs" / "fcos_r50_fpn_1x_coco.yml"
    load_config(standard, [f"OptimizerBuilder.regularizer.factor={decay}"])
    net = paddle.nn.Sequential(
        paddle.nn.Conv2D(3, 4, 3),
        paddle.nn.GroupNorm(2, 4),
        paddle.nn.Conv2D(4, 4, 1, bias_attr=False),
        paddle.nn.BatchNorm2D(4),
    )
    optimizer = create("OptimizerBuilder")(rate, net)
    trained = {name: weight for name, weight in net.named_parameters() if weight.trainable}
    weights = {name: weight.numpy().astype("float64") for name, weight in trained.items()}
    velocity = dict.fromkeys(weights, 0.0)
    rng = np.random.default_rng(0)
    for _ in range(3):
        image = paddle.to_tensor(rng.standard_normal((2, 3, 8, 8)).astype("float32"))
        (net(image) ** 3 + net(image)).sum().backward()
        for name, weight in trained.items():
            is_bias = name.endswith("bias")
            gradient = weight.grad.numpy() + (0 if is_bias else decay) * weights[name]
            velocity[name] = momentum * velocity[name] + gradient
            weights[name] = weights[name] - rate * (2 if is_bias else 1) * velocity[name]
        optimizer.step()
        optimizer.clear_grad()
        for name, weight in trained.items():
            np.testing.assert_allclose(weight.numpy(), weights[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_learning_rate_of_the_standard_schedule(root):
    """A third of 0.01 at first, all of it after 500 steps, a tenth of it after epoch 8, again after 11."""
    load_config(root / "configs" / "fcos_r50_fpn_1x_coco.yml")
    steps = 100  # an epoch
    schedule = create("LearningRate")(steps)
    rates = []
    for _ in range(12 * steps):
        rates.append(schedule())
        schedule.step()
    warm_up = [0.01 * (1 / 3 + (1 - 1 / 3) * step / 500) for step in range(500)]
    expected = warm_up + [0.01] * 300 + [0.001] * 300 + [0.0001] * 100
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_paths_may_be_given_as_path_or_text(write):
    path = write(LEAST)
    assert load_config(str(path))["filename"] == load_config(Path(path))["filename"] == "run"


def test_a_key_that_is_no_longer_used_is_accepted_with_a_notice(root, caplog):
    path = root / "configs/fcos_demo_shapes.yml"
    assert load_config(path, ["coco_eval=pycocotools"])["coco_eval"] == "pycocotools"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "coco_eval" in caplog.text
    caplog.clear()
    load_config(path)
    assert not caplog.records
