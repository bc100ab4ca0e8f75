"""The network: backbones, necks, head, assigner, losses and post-processing. Tensors only.

Importing this package registers its classes in PaddleDetection's workspace. With PaddleDetection's own tools:

    python -c "import runpy, sys, ppfcos.environment as e; e.configure_process(); import ppfcos.modeling; \
        del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')" tools/train.py -c CONFIG

Shape letters: B images, L levels, H_l and W_l height and width of level l, P points over all levels, M boxes
after padding, C classes; N⁺ positive points. `boxes` are x0, y0, x1, y1 in pixels, `distances` l, t, r, b;
label C is the background.

A forward pass reads as fcos.py → layers of backbones/ and necks/ → head.py → assigner.py and losses.py in
training, postprocess.py otherwise.
"""

import ppfcos.paddledetection  # noqa: F401  # isort: skip

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
