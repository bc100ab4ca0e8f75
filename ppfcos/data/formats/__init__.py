"""Annotation formats: COCO, Pascal VOC, YOLO, and several data sets as one."""

import ppfcos.paddledetection  # noqa: F401
