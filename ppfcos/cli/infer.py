"""`tools/infer.py`: detect objects in images or a video, with a checkpoint or an exported bundle."""

from __future__ import annotations

import argparse
import functools

from ppfcos import environment
from ppfcos.cli import command

DESCRIPTION = (
    "Detect objects in images or a video and draw them. The model is either a configuration with its weights "
    "(-c, run in Paddle) or an exported bundle (--bundle, run in ONNX Runtime, OpenVINO or Paddle "
    "Inference); both give the same boxes. With `python -m paddle.distributed.launch`, several processes "
    "share the images."
)
EXAMPLE = """
    python tools/infer.py --bundle output_inference/fcos_r50_fpn_1x_coco --infer_dir photos --save_results
    python tools/infer.py --bundle output_inference/fcos_r50_fpn_1x_coco --video_file street.mp4 \\
        --runtime openvino --precision bf16
    python tools/infer.py -c configs/fcos_r50_fpn_1x_coco.yml \\
        -o weights=output/fcos_r50_fpn_1x_coco/best_model.pdparams --infer_img photo.jpg --draw_threshold 0.4
    python -m paddle.distributed.launch --nproc_per_node 2 tools/infer.py \\
        --bundle output_inference/fcos_r50_fpn_1x_coco --infer_dir photos --save_results
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.option_parser(DESCRIPTION, EXAMPLE, config_required=False)
    add = parser.add_argument
    add("--bundle", metavar="FOLDER", help="a bundle of tools/export_model.py; instead of -c")
    add("--infer_img", metavar="FILE", help="an image; takes precedence over --infer_dir")
    add("--infer_dir", metavar="FOLDER", help="a folder of images")
    add("--video_file", metavar="FILE", help="a video; the result is NAME.mp4 in the output folder")
    add("--output_dir", default="output", metavar="FOLDER", help="for the results (default: %(default)s)")
    add("--draw_threshold", type=float, default=0.5, help="lowest drawn score (default: %(default)s)")
    command.add_switch(
        parser,
        "--save_results",
        "write all boxes to bbox.json in the output folder, as COCO results with names; always for a video",
    )
    command.add_switch(parser, "--use_vdl", "write the images to a VisualDL log too")
    add(
        "--vdl_log_dir",
        default="vdl_log_dir/image",
        metavar="FOLDER",
        help="for VisualDL (default: %(default)s)",
    )
    add(
        "--batch_size",
        type=command.positive,
        metavar="N",
        help="largest batch of images of one size (default: 1, or the fixed batch size of the bundle)",
    )
    command.add_bundle_options(parser)
    return parser


def infer(options: argparse.Namespace) -> None:
    """Detect as the command line says."""
    with environment.quiet_imports():
        from ppfcos.cli import inference

    inference.infer(options)


main = functools.partial(command.run, infer, build_parser)
