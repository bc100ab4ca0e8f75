"""The bundle's `bundle.yml`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ppfcos import __version__
from ppfcos.deploy import bundle as names
from ppfcos.deploy.bundle import DecodeSettings, NetworkInput
from ppfcos.engine.checkpoint import saved_state
from ppfcos.export.onnx_model import output_names
from ppfcos.export.program import HeadsForm
from ppfcos.files import sha256
