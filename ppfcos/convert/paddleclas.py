"""PaddleClas's ImageNet ResNets (ppcls/arch/backbone/legendary_models/resnet.py)."""

from ppfcos.convert.backbones import ResnetNames, resnet
from ppfcos.convert.rules import CLASSIFIER, IMAGENET_PIXELS, Format, Recipe, translate

FIRST_CONV = "stem.0.conv.weight"
PADDLECLAS_RESNET = ResnetNames(
    stem_conv=r"stem\.(?P<number>\d)\.conv",
    stem_norm=r"stem\.(?P<number>\d)\.bn",
    block=r"blocks\.(?P<index>\d+)\.",
    conv=r"conv(?P<branch>[012])\.conv",
    norm=r"conv(?P<branch>[012])\.bn",
    short_conv=r"short\.conv",
    short_norm=r"short\.bn",
    first_branch=0,
)


def _format(name: str, marks: tuple, models: str, variant: str) -> Format:
    names = PADDLECLAS_RESNET._replace(pooled=variant == "d")
    sections = {"PPFCOS": IMAGENET_PIXELS, "ResNet": {"variant": variant}}
    return Format(
        name,
        "PaddleClas",
        marks,
        lambda source, arrays: translate(arrays, resnet(source, arrays, names), ignored=[CLASSIFIER]),
        {"imagenet": Recipe(models, lambda backbone: sections)},
        backbone_only=True,
    )


# Only ResNet-D begins with three convolutions: it is tried first.
FORMAT_VD = _format(
    "paddleclas-vd", (FIRST_CONV, "stem.2.conv.weight"), "ResNet50_vd, ResNet101_vd", variant="d"
)
FORMAT = _format("paddleclas", (FIRST_CONV,), "ResNet50, ResNet101", variant="b")
