"""Configuration files in PaddleDetection's format, loaded safely and checked before anything is built.

A file names its base files under `_BASE_`. Each section is named after a registered class and holds
constructor arguments. `-o section.key=value` overrides a value. Unlike in PaddleDetection, a file cannot run
code (except the Python files under `imports`), and an unknown key is an error.

Plain keys are in PLAIN_KEYS and the keys of readers in READER_KEYS, both in keys.py.
"""

from __future__ import annotations

from ppfcos.config.workspace import load_config

__all__ = ["load_config"]
