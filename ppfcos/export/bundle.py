"""A trained model into a bundle: Paddle program, parameters, and what a deployment needs to know."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import paddle
import yaml
from paddle.static import InputSpec

from ppfcos.deploy import Predictor
from ppfcos.deploy import bundle as layout
from ppfcos.errors import BundleError, OutputError
from ppfcos.export.agreement import compare, noise_batches
from ppfcos.export.checkpoint import CheckpointRuntime
from ppfcos.export.infer_config import infer_config
from ppfcos.folders import replacing_folder

logger = logging.getLogger(__name__)

VERSIONS_THAT_CAN = "Paddle 3.0 to 3.2 can (3.2.2 is what the requirements pin)"


class ExportedNetwork(paddle.nn.Layer):
    """A model with the exported program's face: three tensors in, two out.

    Args:
        model: a PPFCOS.
    """

    def __init__(self, model: paddle.nn.Layer):
        super().__init__()
        self.model = model

    def forward(self, image: paddle.Tensor, im_shape: paddle.Tensor, scale_factor: paddle.Tensor) -> tuple:
        """Boxes of a batch.

        Args:
            image: [B, 3, H, W] float32, RGB from 0 to 255, zeros in the padding.
            im_shape: [B, 2] float32, height and width of each image without its padding.
            scale_factor: [B, 2] float32, vertical and horizontal factor by which it was resized.

        Returns:
            bbox [N, 6] float32 (label, score, x0, y0, x1, y1 in pixels of the original images), bbox_num [B].
        """
        answer = self.model({"image": image, "im_shape": im_shape, "scale_factor": scale_factor})
        return answer["bbox"], answer["bbox_num"]


def input_specs() -> list[InputSpec]:
    """The exported program's inputs; batch, height and width are free."""
    return [
        InputSpec([-1, 3, -1, -1], "float32", "image"),
        InputSpec([-1, 2], "float32", "im_shape"),
        InputSpec([-1, 2], "float32", "scale_factor"),
    ]


def export_bundle(
    model: paddle.nn.Layer,
    cfg: Mapping[str, Any],
    class_names: Sequence[str],
    directory: str | os.PathLike,
    category_ids: Sequence[int] | None = None,
) -> Path:
    """Write a bundle, after having run it once beside the model.

    Args:
        model: a PPFCOS with its weights; it is left in the state, training or evaluation, that it came in.
        cfg: the configuration that it was built from.
        class_names: the name of every class, in the order of the labels.
        directory: the bundle's folder. A bundle that is there is replaced by the complete and checked one.
        category_ids: the number of every class in its data set; None numbers them from 0.

    Returns:
        The folder.

    Raises:
        BundleError: this Paddle cannot export the model, or the exported program's boxes are not the model's.
        ConfigError: the TestReader holds a transform that a bundle cannot carry.
        OutputError: the folder cannot be written, or holds files that are not a bundle's.
    """
    _check_paddle()
    description = infer_config(cfg, class_names, category_ids)
    target = Path(directory)
    _check_target(target)
    with replacing_folder(target) as unfinished, _evaluating(model):
        _save_program(model, unfinished)
        (unfinished / layout.CONFIG_FILE).write_text(
            yaml.safe_dump(description, sort_keys=False), encoding="utf-8"
        )
        _check_answers(model, unfinished)
    logger.info("exported to %s", target)
    return target


def _check_paddle() -> None:
    if not hasattr(paddle.framework, "use_pir_api") or int(paddle.__version__.split(".")[0] or 0) in (1, 2):
        raise BundleError(
            f"Paddle {paddle.__version__} cannot export this model, it lacks the new IR; {VERSIONS_THAT_CAN}"
        )
    if not paddle.framework.use_pir_api():
        raise BundleError("the export needs Paddle's new IR: unset FLAGS_enable_pir_api and run it again")


def _check_target(target: Path) -> None:
    """Refuse a target that is not a bundle, for it would be replaced as a whole."""
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputError(
            f"{target}: a file of this name is in the way of the bundle's folder; choose another folder"
        )
    strangers = sorted(path.name for path in target.iterdir() if path.name not in layout.FILES)
    if strangers:
        raise OutputError(
            f"{target}: holds {', '.join(strangers[:3])}, which is not part of a bundle and would be lost; "
            "move it away or choose another folder"
        )


@contextlib.contextmanager
def _evaluating(model: paddle.nn.Layer) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


def _save_program(model: paddle.nn.Layer, folder: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operators whose arguments PyTorch has in another order
            program = paddle.jit.to_static(ExportedNetwork(model), input_spec=input_specs(), full_graph=True)
            paddle.jit.save(program, str(folder / layout.MODEL_PREFIX))
    except OSError:
        raise
    except Exception as error:  # what Paddle's tracing and serialisation raise has no common type
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise BundleError(
            f"Paddle {paddle.__version__} could not export the model ({lines[-1].strip()}); "
            f"{VERSIONS_THAT_CAN}"
        ) from error


def _check_answers(model: paddle.nn.Layer, folder: Path) -> None:
    device = "gpu" if "gpu" in paddle.get_device() else "cpu"
    exported = Predictor(folder, device=device).runtime
    agreement = compare(CheckpointRuntime(model), exported, noise_batches())
    if not agreement.holds:
        raise BundleError(
            f"the program that Paddle {paddle.__version__} exported disagrees with the model on "
            f"{agreement.unmatched} of {agreement.boxes} boxes, so no bundle was written; {VERSIONS_THAT_CAN}"
        )
    if agreement.boxes:
        logger.info("the exported program gave the model's boxes (%d compared)", agreement.boxes // 2)
    else:
        logger.warning(
            "the model finds nothing in the test images, so the exported program's boxes were not compared"
        )
