"""PaddleDetection 2.6.0's own FCOS, configured as a user of it would: the reference of our benchmarks.

Only `paddledet` is used here, nothing of ppfcos. The configuration is written to a file that can be read.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def stock_config(
    *,
    depth: int,
    target_size: tuple[int, int],
    num_classes: int,
    batch_size: int,
    from_scratch: bool,
    train: dict | None = None,
    evaluation: dict | None = None,
    schedule: dict | None = None,
    workers: int = 2,
    save_dir: str = "output",
) -> dict:
    """Return the configuration of the stock FCOS in PaddleDetection's language.

    Args: depth: depth of the ResNet. target_size: short and long side in pixels; the aspect ratio is kept.
    num_classes: number of classes. batch_size: images per step. from_scratch: train all layers and batch
    norms; otherwise stage 1 and all batch norms are frozen. train: keys of `TrainDataset`. evaluation: keys
    of `EvalDataset`. schedule: `epoch`, `base_lr`, `milestones`, `warmup_steps`, `warmup_start` (first factor
    of the warmup). workers: number of processes that load data. save_dir: folder of PaddleDetection's
    checkpoints.
    """
    schedule = schedule or {
        "epoch": 1,
        "base_lr": 0.01,
        "milestones": [8, 11],
        "warmup_steps": 500,
        "warmup_start": 1 / 3,
    }
    resize = {"Resize": {"target_size": list(target_size), "keep_ratio": True, "interp": 1}}
    normalize = {"NormalizeImage": {"mean": MEAN, "std": STD, "is_scale": True}}
    test_reader = {
        "sample_transforms": [{"Decode": {}}, resize, normalize, {"Permute": {}}],
        "batch_transforms": [{"PadBatch": {"pad_to_stride": 128}}],
        "batch_size": 1,
    }
    return {
        "architecture": "FCOS",
        "use_gpu": False,
        "metric": "COCO",
        "num_classes": num_classes,
        "log_iter": 20,
        "save_dir": save_dir,
        "snapshot_epoch": schedule["epoch"],
        "worker_num": workers,
        "epoch": schedule["epoch"],
        "weights": "",
        "pretrain_weights": "",
        "FCOS": {"backbone": "ResNet", "neck": "FPN", "fcos_head": "FCOSHead"},
        "ResNet": {
            "depth": depth,
            "variant": "b",
            "norm_type": "bn",
            "freeze_at": -1 if from_scratch else 0,
            "freeze_norm": not from_scratch,
            "return_idx": [1, 2, 3],
            "num_stages": 4,
        },
        "FPN": {
            "out_channel": 256,
            "spatial_scales": [0.125, 0.0625, 0.03125],
            "extra_stage": 2,
            "has_extra_convs": True,
            "use_c5": False,
        },
        "FCOSHead": {
            "fcos_feat": {
                "name": "FCOSFeat",
                "feat_in": 256,
                "feat_out": 256,
                "num_convs": 4,
                "norm_type": "gn",
                "use_dcn": False,
            },
            "fpn_stride": [8, 16, 32, 64, 128],
            "prior_prob": 0.01,
            "norm_reg_targets": True,
            "centerness_on_reg": True,
            "num_shift": 0.5,
            "fcos_loss": {
                "name": "FCOSLoss",
                "loss_alpha": 0.25,
                "loss_gamma": 2.0,
                "iou_loss_type": "giou",
                "reg_weights": 1.0,
            },
            "nms": {
                "name": "MultiClassNMS",
                "nms_top_k": 1000,
                "keep_top_k": 100,
                "score_threshold": 0.025,
                "nms_threshold": 0.6,
            },
        },
        "LearningRate": {
            "base_lr": schedule["base_lr"],
            "schedulers": [
                {"name": "PiecewiseDecay", "gamma": 0.1, "milestones": schedule["milestones"]},
                {
                    "name": "LinearWarmup",
                    "start_factor": schedule["warmup_start"],
                    "steps": schedule["warmup_steps"],
                },
            ],
        },
        "OptimizerBuilder": {
            "optimizer": {"momentum": 0.9, "type": "Momentum"},
            "regularizer": {"factor": 0.0001, "type": "L2"},
        },
        "TrainReader": {
            "sample_transforms": [{"Decode": {}}, resize, normalize, {"RandomFlip": {}}],
            "batch_transforms": [
                {"Permute": {}},
                {"PadBatch": {"pad_to_stride": 128}},
                {
                    "Gt2FCOSTarget": {
                        "object_sizes_boundary": [64, 128, 256, 512],
                        "center_sampling_radius": 1.5,
                        "downsample_ratios": [8, 16, 32, 64, 128],
                        "norm_reg_targets": True,
                    }
                },
            ],
            "batch_size": batch_size,
            "shuffle": True,
            "drop_last": True,
        },
        "EvalReader": test_reader,
        "TestReader": test_reader,
        "TrainDataset": {"name": "COCODataSet", **(train or {})},
        "EvalDataset": {"name": "COCODataSet", "allow_empty": True, **(evaluation or {})},
        "TestDataset": {"name": "ImageFolder"},
    }


def train_and_evaluate(config_file: Path, result_file: Path, seed: int) -> None:
    """Train with PaddleDetection's Trainer, evaluate, and write the twelve COCO metrics as JSON."""
    import cv2

    cv2.setNumThreads(0)
    import paddle
    from ppdet.core.workspace import load_config
    from ppdet.engine import Trainer, set_random_seed

    cfg = load_config(str(config_file))
    paddle.set_device("cpu")
    set_random_seed(seed)
    trainer = Trainer(cfg, mode="train")
    trainer.train(validate=True)
    # Its trainer forgets the figures once it has printed them, so the final weights are evaluated once more.
    trainer = Trainer(cfg, mode="eval")
    trainer.load_weights(str(Path(cfg.save_dir) / cfg.filename / "model_final.pdparams"))
    trainer.model.eval()
    with paddle.no_grad():
        for batch in trainer.loader:
            trainer._metrics[0].update(batch, trainer.model(batch))
    trainer._metrics[0].accumulate()
    stats = [float(value) for value in trainer._metrics[0].get_results()["bbox"]]
    result_file.write_text(json.dumps(stats))


def save_program(config: dict, prefix: Path) -> None:
    """Save the network with its post-processing and random weights as a program for Paddle Inference.

    PaddleDetection's own export fails with Paddle 3: it traces with `full_graph=False`, its NMS adds an
    operator in a way that the new IR does not support, and it has an unused input. Network and computation
    are PaddleDetection's.

    Args:
        config: configuration from `stock_config`.
        prefix: path of the files without `.json` and `.pdiparams`.
    """
    import paddle
    from paddle.static import InputSpec

    class Network(paddle.nn.Layer):
        """Two tensors in, two out."""

        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, image, scale_factor):
            found = self.model({"image": image, "scale_factor": scale_factor})
            return found["bbox"], found["bbox_num"]

    network = Network(_created(config))
    inputs = [InputSpec([-1, 3, -1, -1], "float32", "image"), InputSpec([-1, 2], "float32", "scale_factor")]
    _save(network, inputs, prefix)


def save_decoding(config: dict, sizes: list, prefix: Path) -> None:
    """Save only what `save_program` has after the head's last convolutions, for one image.

    Args:
        config: configuration from `stock_config`.
        sizes: height and width of each level.
        prefix: path of the files without `.json` and `.pdiparams`. The inputs are class_logits_8 and so on,
            distances_8 and so on (in pixels), quality_logits_8 and so on, and scale_factor.
    """
    import paddle
    from paddle.static import InputSpec

    head = _created(config).fcos_head
    kinds = {"class_logits": head.num_classes, "distances": 4, "quality_logits": 1}

    class Decoding(paddle.nn.Layer):
        """Outputs of the head in, two tensors out."""

        def forward(self, class_logits, distances, quality_logits, scale_factor):
            locations = [
                head._compute_locations_by_level(stride, level, head.num_shift)
                for stride, level in zip(head.fpn_stride, class_logits)
            ]
            outputs = [locations, class_logits, distances, quality_logits]
            return head.post_process(outputs, scale_factor)

    inputs = [
        [
            InputSpec([1, channels, *size], "float32", f"{kind}_{stride}")
            for stride, size in zip(head.fpn_stride, sizes)
        ]
        for kind, channels in kinds.items()
    ]
    _save(Decoding(), [*inputs, InputSpec([1, 2], "float32", "scale_factor")], prefix)


def _created(config: dict):
    """Return the model with an NMS that the new IR can trace."""
    import paddle
    from ppdet.core.workspace import create, merge_config
    from ppdet.modeling import ops

    def suppress(boxes, scores, score_threshold, nms_top_k, keep_top_k, nms_threshold, **_):
        limits = (score_threshold, nms_top_k, keep_top_k, nms_threshold)
        rows, index, counts = paddle._C_ops.multiclass_nms3(boxes, scores, None, *limits, True, 1.0, -1)
        return rows, counts, index

    ops.multiclass_nms = suppress
    merge_config(config)
    return create("FCOS")


def _save(network, inputs: list, prefix: Path) -> None:
    import paddle

    network.eval()
    paddle.jit.save(paddle.jit.to_static(network, input_spec=inputs, full_graph=True), str(prefix))


def write_config(config: dict, path: Path) -> None:
    """Write the configuration to a file for PaddleDetection's `load_config`."""
    path.write_text(yaml.safe_dump(config, sort_keys=False))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train_and_evaluate(args.config, args.result, args.seed)
