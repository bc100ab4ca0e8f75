"""PPFCOS: the FCOS object detector on PaddlePaddle, trained in PaddleDetection's style.

Importing this package sets what Paddle reads from the environment when it starts and sees to it that the
architecture is registered in PaddleDetection's workspace; it imports neither Paddle nor PaddleDetection
itself, so that a machine that only runs an exported model need not have them. Since Paddle reads the
environment once, import `ppfcos` before `paddle`:

    import ppfcos
    from ppdet.core.workspace import create, load_config

    load_config("configs/fcos_r50_fpn_1x_coco.yml")
    model = create("PPFCOS")
"""

from __future__ import annotations

from ppfcos import environment, registration

__version__ = "0.1.0"

environment.configure_process()
registration.install()
