"""Finds what is wrong with a data set before a training does, and says what the training will do about it.

sources.py, coco_source.py and voc_source.py read annotation files as they stand; pictures.py looks at one
picture in a reading process; rules.py compares the two; kinds.py lists all that can be found, and what
happens to it in training and in evaluation; cleaning.py makes an annotation file without it.
"""
