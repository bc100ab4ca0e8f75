"""Annotated data sets from one format into another.

annotated.py says what a data set is in between: COCO's own dicts, for COCO's format is the one of the three
that has a place for everything. coco.py, voc.py and yolo.py each recognise, read and write one format,
pictures.py puts the pictures where the new annotations expect them, and convert.py is the whole of it.
"""
