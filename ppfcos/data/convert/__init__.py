"""Conversion of data sets between COCO, Pascal VOC and YOLO.

A data set in between is COCO's dicts (annotated.py), since COCO has a place for everything. What each format
drops is listed in docs/own_data.md.
"""
