"""A Paddle program as an ONNX model."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import paddle
from onnx import ModelProto, checker, compose, load_from_string
from onnx.helper import make_tensor_value_info

from ppfcos.errors import BundleError, ConfigError, one_line
from ppfcos.export.onnx_suppression import INPUTS as CANDIDATES
from ppfcos.export.onnx_suppression import suppression_graph
from ppfcos.export.program import (
    BOX_OUTPUTS,
    VERSIONS_THAT_CAN,
    CandidatesNetwork,
    EndToEndNetwork,
    HeadsNetwork,
    head_names,
    save_program,
)
