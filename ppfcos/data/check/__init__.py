"""Finds what is wrong with a data set before training does, and says what training does about it.

annotations.py collects the annotations and the issues that the readers report; images.py reads one image in a
worker; levels.py asks the model's assigner on which levels boxes have points; rules.py checks annotations
against images, and training against validation data; fix.py makes an annotation file without the issues.
"""

import ppfcos.paddledetection  # noqa: F401
