"""A model as a Paddle program: what goes in, what comes out."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import paddle
from paddle import Tensor, nn
from paddle.static import InputSpec

from ppfcos.deploy import bundle as names
from ppfcos.deploy.bundle import NetworkInput
from ppfcos.errors import BundleError
from ppfcos.export.program import image_layer, image_spec, pair_spec
from ppfcos.paddle_versions import HAS_DOUBLES_IN_PROGRAMS, HAS_NEW_IR

VERSIONS_THAT_CAN = "Paddle 3.0 to 3.2 can (3.2.2 is what the requirements pin)"


@dataclass(frozen=True)
class HeadsSpec:
    """How a network gives the head's answers.

    Attributes:
        layout: `nchw` or `nhwc`.
        distances: in `pixels` of the network's input, or in `strides` of their level.
        image_only: the network has no second input that says where the padding begins. A picture must fill
            the image then, or its padding counts as black.
    """

    layout: str = names.NCHW
    distances: str = names.PIXELS
    image_only: bool = False


class EndToEndNetwork(nn.Layer):
    """A model with suppression and all.

    Args:
        model: a PPFCOS.
        form: of the image.
    """

    def __init__(self, model: nn.Layer, form: NetworkInput):
        super().__init__()
        self.model = model
        self.form = form
        self.pixels = image_layer(form)

    def specs(self) -> list[InputSpec]:
        """The inputs."""
        return [
            image_spec(self.form),
            pair_spec(self.form, names.IM_SHAPE),
            pair_spec(self.form, names.SCALE_FACTOR),
        ]

    def forward(self, image: Tensor, im_shape: Tensor, scale_factor: Tensor) -> tuple:
        """Boxes of a batch.

        Args:
            image: as the form says, zeros in the padding.
            im_shape: [B, 2] float32, height and width of each image without its padding.
            scale_factor: [B, 2] float32, vertical and horizontal factor by which it was resized.

        Returns:
            bbox [N, 6] float32 (label, score, x0, y0, x1, y1 in pixels of the original images), bbox_num [B].
        """
        answer = self.model(self._batch(image, im_shape, scale_factor))
        return answer["bbox"], answer["bbox_num"]

    def _batch(self, image: Tensor, im_shape: Tensor, scale_factor: Tensor) -> dict:
        return {"image": self.pixels(image), "im_shape": im_shape, "scale_factor": scale_factor}


class CandidatesNetwork(EndToEndNetwork):
    """All of an end-to-end network but the suppression."""

    def forward(self, image: Tensor, im_shape: Tensor, scale_factor: Tensor) -> tuple:
        """Boxes, boxes as shown, scores and classes (`ppfcos.modeling.postprocess.Candidates`)."""
        return tuple(self.model.candidates(self._batch(image, im_shape, scale_factor)))


class HeadsNetwork(nn.Layer):
    """A model up to the head's answers.

    Args:
        model: a PPFCOS.
        form: of the image.
        heads: of the answers.
    """

    def __init__(self, model: nn.Layer, form: NetworkInput, heads: HeadsSpec):
        super().__init__()
        self.model = model
        self.form = form
        self.heads = heads
        self.pixels = image_layer(form)

    def specs(self) -> list[InputSpec]:
        """The inputs."""
        image = image_spec(self.form)
        return [image] if self.heads.image_only else [image, pair_spec(self.form, names.IM_SHAPE)]

    def forward(self, image: Tensor, im_shape: Tensor | None = None) -> list:
        """The head's answers.

        Args:
            image: as the form says.
            im_shape: [B, 2] float32, height and width of each image without its padding; None: all of it.

        Returns:
            Class logits of all levels, the finest first; distances; quality logits: [B, K, H_l, W_l] or [B,
            H_l, W_l, K].
        """
        pixels = self.pixels(image)
        if im_shape is None:
            im_shape = paddle.shape(pixels)[2:].astype("float32").unsqueeze(0)
        outputs = self.model.network(pixels, im_shape)
        distances = outputs.distances
        if self.heads.distances == names.STRIDES:
            distances = [each / stride for each, stride in zip(distances, self.model.head.strides)]
        answers = [*outputs.class_logits, *distances, *outputs.quality_logits]
        if self.heads.layout == names.NHWC:
            answers = [answer.transpose([0, 2, 3, 1]) for answer in answers]
        return answers


def check_paddle() -> None:
    """Refuse to begin with a Paddle that cannot export.

    Raises:
        BundleError: the version or a flag is in the way.
    """
    if not HAS_NEW_IR:
        raise BundleError(
            f"Paddle {paddle.__version__} cannot export this model, it lacks the new IR; {VERSIONS_THAT_CAN}"
        )
    if HAS_DOUBLES_IN_PROGRAMS:
        raise BundleError(
            f"Paddle {paddle.__version__} cannot export this model, it writes doubles where floats are read; "
            f"{VERSIONS_THAT_CAN}"
        )
    if not paddle.framework.use_pir_api():
        raise BundleError("the export needs Paddle's new IR: unset FLAGS_enable_pir_api and run it again")


def save_program(network: nn.Layer, prefix: Path) -> None:
    """Write a network as a program.

    Args:
        network: one of this file.
        prefix: `prefix`.json and `prefix`.pdiparams are written.

    Raises:
        BundleError: Paddle cannot do it.
    """
    network.eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operators whose arguments PyTorch has in another order
            program = paddle.jit.to_static(network, input_spec=network.specs(), full_graph=True)
            paddle.jit.save(program, str(prefix))
    except OSError:
        raise
    except Exception as error:  # what Paddle's tracing and serialisation raise has no common type
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise BundleError(
            f"Paddle {paddle.__version__} could not export the model ({lines[-1].strip()}); "
            f"{VERSIONS_THAT_CAN}"
        ) from error
