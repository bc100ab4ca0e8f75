"""ImageNet backbones of the authors of DLA (ucbdrive/dla)."""

from ppfcos.convert.backbones import DLA_FIRST_CONV, dla
from ppfcos.convert.rules import CLASSIFIER, IMAGENET_PIXELS, REAL_TIME_BASES, Format, Recipe, translate

FORMAT = Format(
    "dla",
    "the DLA authors' ImageNet backbones",
    (DLA_FIRST_CONV,),
    lambda source, arrays: translate(arrays, dla(source, arrays), ignored=[CLASSIFIER]),
    {"imagenet": Recipe("dla34", lambda backbone: {"PPFCOS": IMAGENET_PIXELS}, bases=REAL_TIME_BASES)},
    backbone_only=True,
)
