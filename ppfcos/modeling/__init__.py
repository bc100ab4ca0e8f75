"""The network: what it computes, learns and answers. Importing it registers its parts in PaddleDetection."""

from ppfcos.modeling.assigner import PPFCOSTargets
from ppfcos.modeling.backbones.dla import PPFCOSDLA
from ppfcos.modeling.backbones.efficientnet import PPFCOSEfficientNet
from ppfcos.modeling.backbones.mobilenet_v2 import PPFCOSMobileNetV2
from ppfcos.modeling.fcos import PPFCOS
from ppfcos.modeling.head import PPFCOSHead
from ppfcos.modeling.losses import PPFCOSLoss
from ppfcos.modeling.necks.bifpn import PPFCOSBiFPN
from ppfcos.modeling.necks.fpn import PPFCOSFPN
from ppfcos.modeling.necks.hrfpn import PPFCOSHRFPN
from ppfcos.modeling.postprocess import PPFCOSDecode

__all__ = [
    "PPFCOS",
    "PPFCOSDLA",
    "PPFCOSFPN",
    "PPFCOSHRFPN",
    "PPFCOSBiFPN",
    "PPFCOSDecode",
    "PPFCOSEfficientNet",
    "PPFCOSHead",
    "PPFCOSLoss",
    "PPFCOSMobileNetV2",
    "PPFCOSTargets",
]
