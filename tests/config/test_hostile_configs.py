"""Configurations with values that make no sense, or that would take memory and time without end.

Each is refused by the function with which the commands load a configuration, in one line that names the key.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import ppdet
import pytest
import yaml
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from ppdet.core.workspace import global_config

from ppfcos.config import load_config
from ppfcos.config.arguments import ARGUMENTS, DATASET_ARGUMENTS, EVALUATED_ARGUMENTS
from ppfcos.config.files import MAX_FILE_BYTES, read_file
from ppfcos.config.keys import NESTED_KEYS, PLAIN_KEYS, READER_KEYS, SCHEDULES
from ppfcos.config.workspace import registered_modules
from ppfcos.data.classes import checked_names
from ppfcos.data.formats.yolo import read_description
from ppfcos.engine.model import build_model
from ppfcos.engine.optim import build_schedule
from ppfcos.errors import ConfigError, DataError
from ppfcos.yaml_files import MAX_BYTES

SHIPPED = ROOT / "configs" / "fcos_r18_bccd.yml"
RESIZE = "EvalReader.sample_transforms.1.Resize"
FLIP = "TrainReader.sample_transforms=[Decode: {}, RandomFlip: {prob: %s}, Permute: {}]"
MOSAIC = "TrainReader.sample_transforms=[Decode: {}, PPFCOSMosaic: {%s}, Permute: {}]"
LEAST = "architecture: PPFCOS\nnum_classes: 3\n"
DECAY, WARMUP = "LearningRate.schedulers.0", "LearningRate.schedulers.1"


def refusal(path, *overrides):
    """The message with which a configuration is refused, which must be one line, printable and short."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 3000
    return message


# Single values -------------------------------------------------------------------------------------------

NOT_NUMBERS = ("abc", "'1'", "true", "[]", "[1]", "{a: 1}", "-.inf", "-1", "1e400", "1" + "0" * 15)
WHOLE_NUMBERS = (
    *("epoch", "worker_num", "log_iter", "TrainReader.total_batch_size", "EvalReader.batch_size"),
    *("PPFCOSFPN.out_channels", "PPFCOSFPN.extra_levels", "PPFCOSHead.num_convs", "ResNet.depth"),
    f"{WARMUP}.steps",
)
OTHER_NUMBERS = (
    *("ema_decay", "snapshot_minutes", "PPFCOSDecode.nms_threshold", "PPFCOSHead.prior_prob"),
    *("PPFCOSLoss.box_weight", "OptimizerBuilder.clip_grad_by_norm", "LearningRate.base_lr"),
)


@pytest.mark.parametrize("value", [*NOT_NUMBERS, "1.5", "null"])
def test_what_is_no_whole_number(value):
    message = refusal(SHIPPED, *(f"{key}={value}" for key in WHOLE_NUMBERS))
    assert [key for key in WHOLE_NUMBERS if key not in message] == []


@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_what_is_no_number_within_limits(value):
    message = refusal(SHIPPED, *(f"{key}={value}" for key in OTHER_NUMBERS))
    assert [key for key in OTHER_NUMBERS if key not in message] == []


@pytest.mark.parametrize(
    "value",
    [".nan", str(10**30), "9" * 5000, "0x" + "f" * 5000, "!!bool x", "!!int x", "!!float x", "&a [*a]"],
)
def test_what_no_key_may_be(value, tmp_path):
    assert "epoch" in refusal(SHIPPED, f"epoch={value}")
    (tmp_path / "run.yml").write_text(f"{LEAST}epoch: {value}\n")
    assert f"{tmp_path / 'run.yml'}:3" in refusal(tmp_path / "run.yml")


@pytest.mark.parametrize(
    "override",
    [
        "architecture=ResNet",
        "architecture=[PPFCOS]",
        "num_classes=0",
        "num_classes=1000000000",
        "epoch=0",
        "seed=-1",
        "seed=4294967296",
        "worker_num=1000000000",
        "filename=../../x",
        "filename=/tmp/x",
        "filename=a/../../x",
        "filename=..",
        "filename=C:\\x",
        "filename=''",
        'save_dir="a\\0b"',
        'save_dir="\\ud800"',
        'save_dir="\\e]0;title\\a"',
        'save_dir="two\\nlines"',
        'weights="\\x9b2J"',
        "export={nms: [1]}",
        "tta={target_size: [[0, 0]]}",
        "tta={target_size: [[800, 1000000]]}",
        "tta={size_ranges: [[3, 2]]}",
        "tta={vote_iou: 2}",
        "quantization_aware_training={range_momentum: 2}",
        "PPFCOS.backbone=null",
        "PPFCOS.neck=[PPFCOSFPN]",
        "PPFCOS.loss={name: [1]}",
        "PPFCOS.loss={name: null}",
        "PPFCOS.backbone={name: ResNet, depth: 77}",
        "PPFCOS.image_mean=[1, 2]",
        "PPFCOS.image_mean=[1, 2, abc]",
        "PPFCOS.image_std=[0, 1, 1]",
        "PPFCOS.locations=corners",
        "PPFCOSFPN.extra_source=c6",
        "PPFCOSFPN.extra_levels=1",
        "PPFCOSTargets.size_ranges=[3, 2]",
        "PPFCOSTargets.size_ranges=[64, 64, 128, 256]",
        "PPFCOSTargets.size_ranges=[64, 128]",
        "PPFCOSTargets.size_ranges=[-1, 64, 128, 256]",
        "PPFCOSTargets.size_ranges=[64, 128, 256, abc]",
        "PPFCOSTargets.size_ranges=64",
        "PPFCOSTargets.chunk_elements=0",
        "PPFCOSHead.deformable_convs=-1",
        "PPFCOSHead.prior_prob=1",
        "PPFCOSHead.norm_type=[gn]",
        "PPFCOSHead.norm_per_level=1",
        "PPFCOSLoss.quality=best",
        "PPFCOSDecode.keep_top_k=0",
        "ResNet.return_idx=[]",
        "ResNet.return_idx=[3, 2]",
        "ResNet.return_idx=[1, 2, 9]",
        "ResNet.return_idx=[2, 3]",
        "ResNet.groups=1000000",
        "ResNet.lr_mult_list=[1]",
        "HRNet.width=20",
        "HRNet.upsample=true",
        "PPFCOSBiFPN.num_layers=99999999",
        "PPFCOSHRFPN.num_levels=99",
        "PPFCOSMobileNetV2.scale=0",
        "PPFCOSEfficientNet.scale=b9",
        "PPFCOSDLA.return_idx=[6]",
        "CSPDarkNet.width_mult=abc",
        "LearningRate.schedulers=[]",
        "LearningRate.schedulers=[{name: [1]}]",
        "LearningRate.schedulers=[{name: LinearWarmup}]",
        "LearningRate.schedulers=[{name: PiecewiseDecay}, {name: CosineDecay}]",
        f"{DECAY}.milestones=[9, 3]",
        f"{DECAY}.milestones=[0]",
        f"{DECAY}.milestones=3",
        f"{DECAY}.gamma=[0.1]",
        f"{DECAY}.values=[0.1]",
        f"{WARMUP}.epochs=1.5",
        "OptimizerBuilder.optimizer.type=[SGD]",
        "OptimizerBuilder.optimizer.type=LBFGS",
        "OptimizerBuilder.optimizer.learning_rate=1",
        "OptimizerBuilder.optimizer.param_groups=[{params: 3}]",
        "OptimizerBuilder.optimizer.param_groups=[{params: [bias], learning_rate: -1}]",
        "OptimizerBuilder.regularizer.factor=-1",
        "TrainReader.accumulate_steps=0",
        "TrainReader.image_cache_gb=.inf",
        "TrainReader.batch_transforms=[PadBatch: {pad_to_stride: 33}]",
        "TrainReader.batch_transforms=[PadBatch: {pad_to_stride: 3200000}]",
        f"{RESIZE}.target_size=[0, 0]",
        f"{RESIZE}.target_size=1000000",
        f"{RESIZE}.target_size=[1, 2, 3]",
        f"{RESIZE}.target_size=[[800, 1333]]",
        f"{RESIZE}.keep_ratio=1",
        FLIP % "2",
        FLIP % "-0.5",
        FLIP % "abc",
        MOSAIC % "",
        MOSAIC % "size: [1000000, 1000000]",
        MOSAIC % "size: [512, 512], scale: [1, 100]",
        MOSAIC % "size: [512, 512], prob: .inf",
        "TrainDataset.name=[PPFCOSVOCDataSet]",
        "TrainDataset.dataset_dir=[5]",
        "TrainDataset.sample_num=abc",
        "TrainDataset.class_names=cells",
        'TrainDataset.class_names=["\\e[2J"]',
        "TrainDataset={name: PPFCOSJoinedDataSet, datasets: [{name: PPFCOSVOCDataSet, weight: 1000000000}]}",
    ],
)
def test_values_out_of_range(override):
    before = dict(global_config.get("PPFCOSHead") or {})
    key = override.partition("=")[0]
    message = refusal(SHIPPED, override)
    assert "size_ranges" in message or key.split(".")[-1] in message
    assert (global_config.get("PPFCOSHead") or {}) == before


@pytest.mark.parametrize(
    "override",
    [
        FLIP % "0",
        "filename=runs/first",
        "OptimizerBuilder.regularizer=null",
        "LearningRate.schedulers=[{name: CosineDecay, max_epochs: 9, use_warmup: false}]",
        "ResNet.return_idx=[1, 2, 3]",
        "PPFCOSDecode.keep_top_k=-1",
        "PPFCOSTargets.center_sampling_radius=0",
        "tta={size_ranges: [[0, .inf]]}",
        f"{RESIZE}.target_size=640",
        "num_classes=null",
        "keep_checkpoints=null",
    ],
)
def test_values_that_users_have(override):
    load_config(SHIPPED, [override])


def test_all_mistakes_are_reported_together():
    message = refusal(SHIPPED, "epoch=0", "PPFCOSHead.num_convs=-1", "PPFCOSHead.distance=x", "worker_nun=1")
    for key in ("epoch", "PPFCOSHead.num_convs", "PPFCOSHead.distance", "worker_nun"):
        assert key in message


def test_an_operator_in_both_lists_of_mixed_precision():
    lists = ["custom_white_list=[relu, conv2d]", "custom_black_list=[conv2d]"]
    assert "custom_black_list both contain 'conv2d'" in refusal(SHIPPED, *lists)


def test_every_argument_of_ours_has_a_kind():
    """By the constructors: what is not there comes from the other parts."""
    modules, datasets = registered_modules()
    from_others = {"in_channels", "strides"}
    for name, schema in modules.items():
        if schema.pymodule.__name__.startswith("ppfcos."):
            kinds = {**DATASET_ARGUMENTS, "datasets": None} if name in datasets else ARGUMENTS[name]
            assert set(schema.schema) - from_others <= set(kinds), name


# What is found when the parts are built --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "section"),
    [
        (["PPFCOSFPN.out_channels=40"], "PPFCOSHead"),
        (["PPFCOSHead.deformable_convs=4", "PPFCOSHead.num_convs=1"], "PPFCOSHead"),
        (["ResNet.return_idx=[0, 1, 3]"], "PPFCOSFPN"),
        (["ResNet.num_stages=2"], "ResNet"),
        (["PPFCOS.backbone=PPFCOSLoss"], "PPFCOS"),
        (["PPFCOS.backbone=PPFCOS"], "PPFCOS"),
        (["PPFCOS.backbone=ResNet", "ResNet.norm_type=affine_channel"], "ResNet"),
    ],
)
def test_parts_that_do_not_fit_are_named(overrides, section):
    cfg = load_config(SHIPPED, overrides)
    with pytest.raises(ConfigError) as caught:
        build_model(cfg)
    assert section in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_schedule_of_too_many_steps():
    cosine = "LearningRate.schedulers=[{name: CosineDecay, max_epochs: 100000}, {name: LinearWarmup}]"
    with pytest.raises(ConfigError, match="max_epochs"):
        build_schedule(load_config(SHIPPED, [cosine]), steps_per_epoch=10_000)


# Files that expand -----------------------------------------------------------------------------------------


def fan_of_bases(folder):
    for level in range(10):
        names = [f"{level + 1}_{number}.yml" for number in range(10)] if level < 9 else []
        for number in range(10):
            (folder / f"{level}_{number}.yml").write_text(f"_BASE_: {names}\n{LEAST}zzz: 1\n")
    return folder / "0_0.yml"


def chain_of_bases(folder):
    for number in range(200):
        (folder / f"{number}.yml").write_text(f"_BASE_: {number + 1}.yml\n")
    (folder / "200.yml").write_text(LEAST)
    return folder / "0.yml"


def many_bases(folder):
    (folder / "base.yml").write_text("ema_black_list: &x [" + "bias, " * 9000 + "]\n")
    (folder / "run.yml").write_text(f"_BASE_: {['base.yml'] * 100}\n{LEAST}")
    return folder / "run.yml"


def text_file(text, folder):
    (folder / "run.yml").write_text(LEAST + text)
    return folder / "run.yml"


def aliases(line):
    return "".join(line(number) for number in range(12))


BOMBS = {
    "fan of bases": fan_of_bases,
    "chain of bases": chain_of_bases,
    "many bases": many_bases,
    "aliases": functools.partial(
        text_file, "a: &a0 [x]\n" + aliases(lambda n: f"a{n}: &a{n + 1} [{f'*a{n}, ' * 9}]\n")
    ),
    "merge keys": functools.partial(
        text_file,
        "m: &m0 {k: 1}\n" + aliases(lambda n: f"m{n}: &m{n + 1} {{k{n}: 1, <<: [{f'*m{n}, ' * 9}]}}\n"),
    ),
    "contains itself": functools.partial(text_file, "a: &a {b: *a}\n"),
    "deep": functools.partial(text_file, "a: " + "[" * 100_000),
    "many keys": functools.partial(text_file, "".join(f"k{number}: 1\n" for number in range(30_000))),
    "many keys of a section": functools.partial(
        text_file, "PPFCOSHead:\n" + "".join(f"  k{number}: 1\n" for number in range(9000))
    ),
    "long key": functools.partial(text_file, "k" * 500_000 + ": 1\n"),
    "long text": functools.partial(text_file, "metric: " + "k" * 1_000_000 + "\n"),
    "long number": functools.partial(text_file, "epoch: 0x" + "f" * 500_000 + "\n"),
    "sexagesimal": functools.partial(text_file, "epoch: 1" + ":1" * 200_000 + "\n"),
    "large": functools.partial(text_file, "#" * (MAX_FILE_BYTES + 1)),
}


# Loads configurations in a process that may take 256 MB more than it has after its imports.
IN_BOUNDED_MEMORY = f"""
import json, resource, sys, time
from ppfcos.config import load_config
from ppfcos.errors import ConfigError

load_config({os.fspath(SHIPPED)!r})
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (256 << 20)
resource.setrlimit(resource.RLIMIT_AS, (size, size))
for path in sys.argv[1:]:
    start = time.process_time()
    try:
        load_config(path)
    except ConfigError as error:
        print(json.dumps([path, time.process_time() - start, str(error)]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="measures memory by /proc")
def test_files_that_expand_are_refused_soon_and_in_little_memory(tmp_path):
    paths = []
    for name, write in BOMBS.items():
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        paths.append(str(write(folder)))
    done = subprocess.run(
        [sys.executable, "-c", IN_BOUNDED_MEMORY, *paths], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [path for path, _, _ in answers] == paths
    for path, seconds, message in answers:
        assert message.startswith(os.path.dirname(path)), message  # the file or one of its bases
        assert "\n" not in message
        assert len(message) < 3000
        assert seconds < 4, path


def test_a_base_is_read_once(tmp_path):
    path = fan_of_bases(tmp_path)
    for file in tmp_path.iterdir():
        file.write_text(file.read_text().replace("zzz: 1", "epoch: 7"))
    start = time.process_time()
    assert load_config(path)["epoch"] == 7
    assert time.process_time() - start < 4


@pytest.mark.parametrize("place", ["pipe", "/dev/zero", "/proc/kcore", "loop", "folder"])
def test_only_regular_files_are_read(tmp_path, place):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    path = tmp_path / "run.yml"
    path.write_text(f"_BASE_: {place}\n{LEAST}")
    assert f"{path}:1: _BASE_ names {place}" in refusal(path)
    assert str(tmp_path / place) in refusal(tmp_path / place)


def test_a_link_to_a_file_is_read(tmp_path):
    (tmp_path / "base.yml").write_text("epoch: 3\n")
    (tmp_path / "link.yml").symlink_to(tmp_path / "base.yml")
    (tmp_path / "run.yml").write_text(f"_BASE_: link.yml\n{LEAST}")
    assert load_config(tmp_path / "run.yml")["epoch"] == 3


@pytest.mark.parametrize(
    "override",
    [
        ".".join("a" * 10_000) + "=1",
        "a" * 100_000 + "=1",
        "epoch=" + "[" * 10_000,
        "epoch=" + "{a: " * 10_000,
        "epoch=" + "1" * 1_000_000,
        "TrainReader.sample_transforms." + "9" * 5000 + "=1",
        "TrainReader.sample_transforms.99999=1",
        "TrainReader.sample_transforms.²=1",
        "\x1b[2J=1",
        "epoch=\ud800",
        "epoch=\0",
        "epoch",
        "x" * 10_000,
    ],
)
def test_overrides_without_end(override):
    start = time.process_time()
    assert refusal(SHIPPED, override).startswith("-o")
    assert time.process_time() - start < 4


# data.yaml -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "names: &a0 [x]\n" + aliases(lambda n: f"a{n}: &a{n + 1} [{f'*a{n}, ' * 9}]\n"),
        "names: &a [*a]\n",
        "names: " + "[" * 100_000,
        "".join(f"k{number}: 1\n" for number in range(60_000)),
        "names: !!bool x\n",
        "names: [a]\nnc: " + "9" * 5000,
        "names: [a]\nnc: 18446744073709551615\n",
        "names: [a]\ncategory_ids: [18446744073709551615]\n",
        "names: [a]\ncategory_ids: [true]\n",
        'names: ["\\ud800"]\n',
        "names: {0: a, 18446744073709551615: b}\n",
        "names: {0: a, .nan: b}\n",
        "names: {? [a] : b}\n",
        "names: [[a]]\n",
        "names: []\n",
        "names: [a]\ntrain: [[x]]\n",
        'names: [a]\ntrain: "\\0"\n',
        "#" * (MAX_BYTES + 1),
    ],
)
def test_descriptions_of_data_that_make_no_sense(tmp_path, text):
    path = tmp_path / "data.yaml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(DataError) as caught:
        read_description(path)
    assert time.process_time() - start < 6
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_many_class_names_do_not_take_quadratic_time(tmp_path):
    names = [f"class {number}" for number in range(40_000)]
    start = time.process_time()
    assert checked_names(names, "names") == names
    assert time.process_time() - start < 2


# Anything, anywhere ----------------------------------------------------------------------------------------

_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64)
    | st.floats()
    | st.sampled_from(["abc", "", "1", "ResNet", "PPFCOS", "bn", "../x", "\x1b[2J", "\ud800", "é"])
)
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["name", "type", "depth", "a"]), inner, max_size=2)
    ),
    max_leaves=6,
)


def _all_keys():
    """Every key that can be set in the shipped configuration."""
    modules, datasets = registered_modules()
    keys = list(PLAIN_KEYS)
    keys += [f"{key}.{inner}" for key, section in NESTED_KEYS.items() for inner in section]
    keys += [f"{reader}.{key}" for reader, section in READER_KEYS.items() for key in section]
    for name in ARGUMENTS:
        keys += [name, *(f"{name}.{argument}" for argument in modules[name].schema)]
    keys += [f"TrainDataset.{key}" for key in ("name", *DATASET_ARGUMENTS)]

    def of_file(path, value):
        if isinstance(value, (dict, list)):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                inner_path = [*path, str(key)]
                yield ".".join(inner_path)
                yield from of_file(inner_path, inner)

    return sorted({*keys, *of_file([], read_file(str(SHIPPED), (*datasets, *SCHEDULES)))})


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_value_at_any_key_is_refused_or_loaded(data):
    keys = data.draw(st.lists(st.sampled_from(_all_keys()), min_size=1, max_size=2))
    overrides = [
        f"{key}={yaml.safe_dump(data.draw(_values), default_flow_style=True, width=10**6)}" for key in keys
    ]
    try:
        load_config(SHIPPED, overrides)
    except ConfigError as error:
        assert str(error).isprintable()


# What PaddleDetection would run ----------------------------------------------------------------------------

RUNS = "__import__('pathlib').Path('{witness}').touch()"
PADDLEDETECTION = Path(ppdet.__file__).parent


@pytest.mark.parametrize(
    "override",
    [
        "TrainReader.sample_transforms=[DecodeCache: {{cache_root: {witness}}}]",
        "TrainReader.sample_transforms.0={{RandomSelect: {{transforms2: [], transforms1: "
        "[DecodeCache: {{cache_root: {witness}}}]}}}}",
        "EvalReader.sample_transforms=[DebugVisibleImage: {{output_dir: {witness}}}]",
        "TestReader.sample_transforms=[VisibleRBox: {{output_dir: {witness}}}]",
        "TrainDataset={{name: MOTImageFolder, dataset_dir: ., video_file: 'x; touch {witness}'}}",
        "TrainDataset={{name: PPFCOSJoinedDataSet, datasets: [{{name: MOTImageFolder, video_file: 'x;touch "
        "{witness}'}}]}}",
        'OptimizerBuilder.optimizer={{type: AdamWDL, set_param_lr_func: "' + RUNS + '"}}',
        'PPFCOS.backbone={{name: VisionTransformer, norm_layer: "' + RUNS + '"}}',
        'PPFCOS.neck={{name: CustomCSPPAN, stage_fn: "' + RUNS + '"}}',
        'PPFCOS.neck={{name: CustomCSPPAN, block_fn: "' + RUNS + '"}}',
        'PPFCOS.backbone={{name: TransEncoder, act_fn: "' + RUNS + '"}}',
        'PPFCOS.backbone={{name: PCBPyramid, model_name: "' + RUNS + '"}}',
        "PPFCOS.backbone={{name: SwinTransformer, pretrained: 'http://127.0.0.1:9/{witness}'}}",
    ],
)
def test_parts_of_paddledetection_that_run_code_or_write_are_refused(tmp_path, override):
    witness = tmp_path / "witness"
    refusal(SHIPPED, override.format(witness=witness))
    assert not witness.exists()


def test_every_argument_that_paddledetection_evaluates_is_known():
    """A new version that evaluates another argument or unpickles in another operator fails here."""
    evaluated, unpickling = set(), set()
    for path in [*PADDLEDETECTION.glob("modeling/**/*.py"), *PADDLEDETECTION.glob("optimizer/*.py")]:
        for call in _calls(ast.parse(path.read_text(encoding="utf-8"))):
            if ast.unparse(call.func) == "eval":
                evaluated.add(ast.unparse(call.args[0]))
    for path in PADDLEDETECTION.glob("data/**/*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = {ast.unparse(call.func) for call in _calls(node)}
            if names & {"eval", "exec", "os.system", "pickle.load", "pickle.loads", "np.load", "paddle.load"}:
                unpickling.add(node.name)
    assert evaluated == set(EVALUATED_ARGUMENTS)
    assert unpickling == {"DecodeCache", "video2frames"}  # the second one is called by MOTImageFolder


def _calls(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
