"""`tools/infer.py`: find objects in pictures or a video, with a checkpoint or with an exported bundle."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ppfcos import environment
from ppfcos.cli import command

DESCRIPTION = (
    "Find objects in pictures or in a video and draw them. The model is either a configuration with its "
    "weights (-c, run in Paddle) or an exported bundle (--bundle, run in ONNX Runtime, OpenVINO or Paddle "
    "Inference); both prepare the pictures alike and find the same boxes. Started by "
    "`python -m paddle.distributed.launch`, several processes share the pictures."
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
    add("--bundle", metavar="FOLDER", help="what tools/export_model.py wrote; instead of -c")
    add("--infer_img", metavar="FILE", help="a picture; goes before --infer_dir")
    add("--infer_dir", metavar="FOLDER", help="a folder of pictures")
    add("--video_file", metavar="FILE", help="a video; drawn into the output folder as .mp4")
    add("--output_dir", default="output", metavar="FOLDER", help="for the results (default: %(default)s)")
    add(
        "--draw_threshold", type=float, default=0.5, help="lowest score of a drawn box (default: %(default)s)"
    )
    command.add_switch(
        parser,
        "--save_results",
        "write all boxes to bbox.json in the output folder, as COCO results with names; "
        "done for a video anyway",
    )
    command.add_switch(parser, "--use_vdl", "show the pictures in VisualDL as well")
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
        help="pictures of one size run at once at the most (default: 1, or what the bundle is fixed to)",
    )
    command.add_bundle_options(parser)
    return parser


def infer(options: argparse.Namespace) -> None:
    """Find and draw the objects in the pictures or the video that the command line names.

    Args:
        options: of `build_parser`.

    Raises:
        PPFCOSError: what is wrong with the model, the pictures or the output folder.
    """
    with environment.quiet_imports():
        from ppfcos.cli import inference

    inference.draw_what_is_found(options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; those of the process where None.

    Returns:
        The exit code.
    """
    return command.run(infer, build_parser(), argv)
