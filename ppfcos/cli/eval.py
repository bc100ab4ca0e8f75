"""`tools/eval.py`: evaluate a trained model."""

from __future__ import annotations

import argparse
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ppfcos import environment
from ppfcos.cli import command

logger = logging.getLogger(__name__)

EXAMPLE = """
python tools/eval.py -c configs/fcos_r50_fpn_1x_coco.yml -o weights=output/fcos_r50_fpn_1x_coco/best_model
python tools/eval.py -c configs/fcos_r50_fpn_1x_coco.yml --classwise
python tools/eval.py -c configs/fcos_r50_fpn_1x_coco.yml -o weights=model.pdparams --output_eval results
python tools/eval.py -c configs/fcos_r50_fpn_1x_coco.yml --json_eval --output_eval results
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line.

    Returns:
        Its parser.
    """
    parser = command.option_parser(
        "Evaluate a model on EvalDataset with COCO's figures. The weights are those of -o weights=FILE,\n"
        "or else save_dir/NAME/model_final, NAME being the configuration's.",
        EXAMPLE,
    )
    command.add_switch(parser, "--classwise", "print the AP of each class too")
    parser.add_argument(
        "--output_eval",
        metavar="FOLDER",
        help="write the detections to FOLDER/bbox.json, in COCO's result format",
    )
    parser.add_argument(
        "--json_eval",
        action="store_true",
        help="evaluate the bbox.json of an earlier --output_eval FOLDER (default: .) instead of a model",
    )
    command.add_switch(parser, "--amp", "mixed precision, for GPUs: convolutions and the like in 16 bits")
    return parser


def evaluate(options: argparse.Namespace) -> None:
    """Evaluate as the command line says.

    Args:
        options: of `build_parser`.

    Raises:
        PPFCOSError: it cannot be done.
    """
    environment.prepare()
    with environment.quiet_imports():
        from ppfcos.config import load_config
        from ppfcos.data.classes import settle_num_classes
        from ppfcos.data.datasets import build_dataset
        from ppfcos.engine import distributed
        from ppfcos.engine.device import select_device

    cfg = load_config(options.config, command.overrides(options, "classwise", "output_eval", "amp"))
    device = select_device(cfg)
    with distributed.joined():
        with distributed.together():
            data = build_dataset(cfg, "EvalDataset")
            settle_num_classes(cfg, data.class_names, data.source)
        figures = _figures_of_file(cfg, data) if options.json_eval else _figures_of_model(cfg, data, device)
    if cfg["classwise"]:
        logger.info("box AP of each class:\n%s", figures.class_table())
    logger.info("evaluated on %d images:\n%s", len(data), figures.table())


def _figures_of_file(cfg: Mapping[str, Any], data: Any) -> Any:
    from ppfcos.engine.coco_metrics import evaluate_detections
    from ppfcos.engine.evaluator import read_detections

    detections = read_detections(cfg.get("output_eval") or ".")
    return evaluate_detections(data.coco_ground_truth(), detections, cfg["coco_eval"])


def _figures_of_model(cfg: Mapping[str, Any], data: Any, device: str) -> Any:
    from ppfcos.data.classes import check_same_classes
    from ppfcos.data.loader import EvalLoader
    from ppfcos.engine import distributed, evaluator
    from ppfcos.engine.augmented_testing import config_for_testing, model_for_testing
    from ppfcos.engine.checkpoint import saved_class_names
    from ppfcos.engine.files import require_writable
    from ppfcos.engine.model import build_model
    from ppfcos.engine.precision import Precision
    from ppfcos.engine.run_folder import FINAL, run_folder
    from ppfcos.engine.weights import load_weights

    output = cfg.get("output_eval")
    with distributed.together():
        if output and distributed.is_main():
            require_writable(output)
    with distributed.together():
        reading = config_for_testing(cfg, "EvalReader")
        loader = EvalLoader(reading, data, "EvalReader", distributed.world_size(), distributed.rank())
        model = build_model(cfg)
        weights = cfg.get("weights") or run_folder(cfg) / FINAL
        trained_on = saved_class_names(weights)
        if trained_on is not None:
            check_same_classes(trained_on, str(weights), data.class_names, data.source)
        load_weights(model, weights)
        logger.info("weights: %s", weights)
        model = model_for_testing(model, cfg, "EvalReader")
    uses = [functools.partial(evaluator.write_detections, output)] if output else []
    return evaluator.evaluate(model, loader, data, Precision(cfg, device), cfg["coco_eval"], uses)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; those of the process where None.

    Returns:
        The exit code.
    """
    return command.run(evaluate, build_parser(), argv)
