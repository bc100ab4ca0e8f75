"""`tools/eval.py`: evaluate a trained model."""

from __future__ import annotations

import argparse
import functools
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

from ppfcos import environment
from ppfcos.cli import command
from ppfcos.errors import ConfigError

logger = logging.getLogger(__name__)

BELOW = 1  # exit code if a metric is below --require-ap or --require-fps
DESCRIPTION = (
    "Evaluate a model on EvalDataset with COCO's metrics. The weights are those of -o weights=FILE, or "
    "save_dir/NAME/model_final, where NAME is the name of the configuration. With --bundle, an exported "
    "model is evaluated as it runs, from files to boxes."
)
EXAMPLE = """
python tools/eval.py -c configs/fcos_r50_fpn_1x_coco.yml -o weights=output/fcos_r50_fpn_1x_coco/best_model
python tools/eval.py -c configs/fcos_r50_fpn_1x_coco.yml --classwise
python tools/eval.py -c configs/fcos_r50_fpn_1x_coco.yml -o weights=model.pdparams --output_eval results
python tools/eval.py -c configs/fcos_r50_fpn_1x_coco.yml --json_eval --output_eval results
python tools/eval.py -c configs/fcos_r50_fpn_1x_coco.yml --report reports/mine
python tools/eval.py --compare reports/before reports/after --report reports/change
python tools/eval.py -c configs/fcos_r50_fpn_1x_coco.yml --bundle output_inference/fcos_r50_fpn_1x_coco \\
    --runtime onnxruntime --precision fp16 --batch 32 --require-ap 0.385
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.option_parser(DESCRIPTION, EXAMPLE, config_required=False)
    add = parser.add_argument
    command.add_switch(parser, "--classwise", "print the AP of each class too")
    add(
        "--output_eval",
        metavar="FOLDER",
        help="write the detections to FOLDER/bbox.json, in COCO's result format",
    )
    add(
        "--json_eval",
        action="store_true",
        help="evaluate the bbox.json of an earlier --output_eval FOLDER (default: .) instead of a model",
    )
    command.add_switch(parser, "--amp", "mixed precision, for GPUs: most operators compute in 16 bits")
    add(
        "--report",
        metavar="FOLDER",
        help="write an analysis of the errors to FOLDER/report.html, report.json and classes.csv",
    )
    add(
        "--compare",
        nargs=2,
        metavar="FOLDER",
        help="compare two earlier reports in comparison.html in the --report FOLDER; without -c",
    )
    add("--bundle", metavar="FOLDER", help="a bundle of tools/export_model.py")
    command.add_bundle_options(parser)
    add("--batch", type=command.positive, metavar="N", help="for --bundle: largest batch of one image size")
    add(
        "--require-ap",
        type=functools.partial(command.finite, most=1.0),
        metavar="AP",
        help=f"exit with {BELOW} if the AP, from 0 to 1, is below",
    )
    add(
        "--require-fps",
        type=command.finite,
        metavar="FPS",
        help=f"for --bundle: exit with {BELOW} if fewer images per second are processed",
    )
    return parser


def run(options: argparse.Namespace) -> int | None:
    """Evaluate, or compare earlier evaluations."""
    if options.compare:
        return compare(options)
    if not options.config:
        raise ConfigError("name the configuration to evaluate: -c FILE")
    return evaluate(options)


def compare(options: argparse.Namespace) -> None:
    """Compare two earlier evaluations."""
    others = (options.config, options.opt, options.bundle, options.require_ap, options.require_fps)
    if any(each not in (None, []) for each in others) or not options.report:
        raise ConfigError(
            "--compare FOLDER FOLDER needs --report FOLDER, and no configuration, bundle or required metric"
        )
    from ppfcos.visualize.evaluation_report import write_comparison

    logger.info("comparison: %s", write_comparison(*options.compare, options.report))


def evaluate(options: argparse.Namespace) -> int:
    """Evaluate a model; returns 0, or BELOW if a metric is less than required."""
    command.require_bundle(options, "batch", "require_fps")
    if options.bundle and options.json_eval:
        raise ConfigError("--json_eval evaluates earlier detections and runs no model: remove --bundle")
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before Paddle is imported
    environment.configure_process()
    with environment.quiet_imports():
        from ppfcos.config import load_config
        from ppfcos.data.classes import set_num_classes
        from ppfcos.data.datasets import build_dataset
        from ppfcos.engine import distributed
        from ppfcos.engine.device import select_device

    cfg = load_config(options.config, command.overrides(options, "classwise", "output_eval", "amp"))
    device = select_device(cfg)
    images_a_second = None
    with distributed.process_group():
        with distributed.collective_error_check():
            data = build_dataset(cfg, "EvalDataset", _trained_classes(cfg, options))
            set_num_classes(cfg, data.class_names, data.source)
        found: list[dict] = []  # detections of all images, in the main process
        if options.report:
            _require_writable(options.report)
        if options.json_eval:
            figures = _figures_of_file(cfg, data, found)
        elif options.bundle:
            figures, images_a_second = _figures_of_bundle(cfg, data, options, found)
        else:
            figures = _figures_of_model(cfg, data, device, found)
        if options.report:
            _write_report(options, cfg, data, found, figures)
    if cfg["classwise"]:
        logger.info("box AP of each class:\n%s", figures.class_table())
    logger.info("evaluated on %d images:\n%s", len(data), figures.table())
    if images_a_second is not None:
        logger.info("%.2f images/s, from files to boxes", images_a_second)
    required = (("AP", figures.ap, options.require_ap), ("images/s", images_a_second, options.require_fps))
    return BELOW if any(_is_below(*each) for each in required) else 0


def _is_below(name: str, value: float | None, least: float | None) -> bool:
    if least is None or value is None:
        return False
    logger.log(
        logging.WARNING if value < least else logging.INFO, "%s %.4g, required is %.4g", name, value, least
    )
    return value < least


def _require_writable(folder: str) -> None:
    from ppfcos.engine import distributed
    from ppfcos.fileio import require_writable

    with distributed.collective_error_check():
        if distributed.is_main():
            require_writable(folder, "--report FOLDER")


def _write_report(
    options: argparse.Namespace, cfg: Mapping[str, Any], data: Any, found: list[dict], figures: Any
) -> None:
    from ppfcos.engine import distributed
    from ppfcos.visualize.evaluation_report import write_report
    from ppfcos.visualize.gallery import RecordImages

    model = (cfg.get("output_eval") or ".") if options.json_eval else options.bundle or cfg.get("weights")
    title = " · ".join(str(part) for part in (Path(options.config).stem, model) if part)
    with distributed.collective_error_check():
        if distributed.is_main():
            pictures = RecordImages(data.records)
            page = write_report(options.report, title, data.coco_ground_truth(), found, figures, pictures)
            logger.info("report: %s", page)


def _figures_of_file(cfg: Mapping[str, Any], data: Any, found: list[dict]) -> Any:
    from ppfcos.engine.evaluator import read_detections
    from ppfcos.metrics.coco import evaluate_detections

    found += read_detections(cfg.get("output_eval") or ".")
    return evaluate_detections(data.coco_ground_truth(), found, cfg["max_detections"])


def _uses(cfg: Mapping[str, Any], found: list[dict]) -> list[Callable[[list[dict]], object]]:
    """Consumers of all detections: the list for the report, and the output file."""
    from ppfcos.engine import distributed, evaluator
    from ppfcos.fileio import require_writable

    output = cfg.get("output_eval")
    with distributed.collective_error_check():
        if output and distributed.is_main():
            require_writable(output)
    return [found.extend, *([functools.partial(evaluator.write_detections, output)] if output else [])]


def _trained_classes(cfg: Mapping[str, Any], options: argparse.Namespace) -> list[str] | None:
    """The class names in the weights to evaluate; None if they name none."""
    from ppfcos.engine.checkpoint import saved_class_names
    from ppfcos.engine.run_folder import FINAL, run_folder

    if options.json_eval or options.bundle:
        return None
    return saved_class_names(cfg.get("weights") or run_folder(cfg) / FINAL)


def _figures_of_model(cfg: Mapping[str, Any], data: Any, device: str, found: list[dict]) -> Any:
    from ppfcos.data.classes import check_same_classes
    from ppfcos.data.loader import EvalLoader
    from ppfcos.engine import distributed, evaluator
    from ppfcos.engine.amp import Precision
    from ppfcos.engine.checkpoint import saved_class_names
    from ppfcos.engine.model import build_model
    from ppfcos.engine.run_folder import FINAL, run_folder
    from ppfcos.engine.tta import tta_config, tta_model
    from ppfcos.engine.weights import load_weights

    uses = _uses(cfg, found)
    with distributed.collective_error_check():
        reading = tta_config(cfg, "EvalReader")
        loader = EvalLoader(reading, data, "EvalReader", distributed.world_size(), distributed.rank())
        model = build_model(cfg)
        weights = cfg.get("weights") or run_folder(cfg) / FINAL
        trained_on = saved_class_names(weights)
        if trained_on is not None:
            check_same_classes(trained_on, str(weights), data.class_names, data.source)
        load_weights(model, weights)
        logger.info("weights: %s", weights)
        model = tta_model(model, cfg, "EvalReader")
    return evaluator.evaluate(model, loader, data, Precision(cfg, device), cfg["max_detections"], uses)


def _figures_of_bundle(
    cfg: Mapping[str, Any], data: Any, options: argparse.Namespace, found: list[dict]
) -> tuple[Any, float]:
    """The metrics, and the images per second of all processes together."""
    from ppfcos.data.classes import check_same_classes
    from ppfcos.deploy import Predictor
    from ppfcos.engine import distributed, evaluator

    uses = _uses(cfg, found)
    with distributed.collective_error_check():
        way = options.runtime, options.precision, options.threads, options.batch, options.device
        predictor = Predictor(options.bundle, *way)
        check_same_classes(list(predictor.class_names), str(options.bundle), data.class_names, data.source)
    return evaluator.evaluate_bundle(predictor, data, cfg["max_detections"], uses)


main = functools.partial(command.run, run, build_parser)
