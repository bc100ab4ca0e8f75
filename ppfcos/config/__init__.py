"""Configuration files in PaddleDetection's language, read safely and checked before anything is built.

A file names its base files under `_BASE_`, sections name the registered classes whose constructor arguments
they hold, and `-o section.key=value` overrides any of it. Two things differ from PaddleDetection: nothing in
a file can run code, and a key that nobody would read is an error, which names the file, the line and the
nearest key that exists.

Plain keys are listed in keys.py (PLAIN_KEYS), and the keys of the readers (READER_KEYS). The keys of every
other section are the constructor arguments of the class that it is named after.
"""

from __future__ import annotations

from ppfcos.config.workspace import load_config

__all__ = ["load_config"]
