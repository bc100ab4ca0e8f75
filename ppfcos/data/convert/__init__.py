"""Conversion of data sets between COCO, Pascal VOC and YOLO.

A data set in between is COCO's dicts (annotated.py), for COCO has a place for everything. What is lost:

- in Pascal VOC: image, annotation and category ids, segmentations and all other keys of COCO.
- in YOLO: crowds, areas, image and annotation ids, and all other keys of COCO. Boxes are clipped.
"""
