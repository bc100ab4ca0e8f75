"""NMS as an ONNX graph, for any batch size; paddle2onnx converts Paddle's operator for one image only."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, numpy_helper
from onnx.parser import parse_model

from ppfcos.decode_options import DecodeOptions

# B images, S candidates per image, C classes, Q = keep_top_k, N detections of all images.
SCORES_BY_CLASS = """
    class_column = Unsqueeze (classes, axis_1)
    score_row = Unsqueeze (scores, axis_1)
    is_class = Equal (class_column, class_numbers)
    class_scores = Where (is_class, score_row, zero)
"""  # [B, C, S], 0 where the candidate is of another class
TOP_OF_CLASS = """
    top, top_at = TopK (class_scores, class_top_k)
    lowest_top = Slice (top, minus_1, huge, axis_2)
    is_top = GreaterOrEqual (class_scores, lowest_top)
    score_by_class = Where (is_top, class_scores, zero)
"""
ALL_OF_CLASS = """
    score_by_class = Identity (class_scores)
"""
NMS = """
    selected = NonMaxSuppression (boxes, score_by_class, kept_of_class, iou_threshold, score_threshold)
    positions = Gather <axis = 1> (selected, image_and_place)
    selected_scores = GatherND (scores, positions)
    size = Shape (scores)
    zeros = ConstantOfShape (size)
    kept_scores = ScatterND (zeros, positions, selected_scores)
    best, best_at = TopK (kept_scores, kept)
    best_column = Unsqueeze (best_at, axis_2)
    best_at_four = Expand (best_column, four_wide)
    best_boxes = GatherElements <axis = 1> (shown, best_at_four)
    best_classes = GatherElements <axis = 1> (classes, best_at)
    is_kept = Greater (best, zero)
"""  # [B, Q] each: the selected scores are scattered to the candidates' positions, then the top-k of an image
# Boxes entirely outside the image have the coordinate -1.
ONLY_VISIBLE = """
    left_sides = Gather <axis = 2> (best_boxes, left_side)
    visible = GreaterOrEqual (left_sides, zero)
    valid = And (is_kept, visible)
"""
ALL_BOXES = """
    valid = Identity (is_kept)
"""
ROWS = """
    labels = Cast <to = 1> (best_classes)
    label_column = Unsqueeze (labels, axis_2)
    score_column = Unsqueeze (best, axis_2)
    table = Concat <axis = 2> (label_column, score_column, best_boxes)
    rows = Reshape (table, six_wide)
    valid_of_all = Reshape (valid, minus_1)
    valid_at = NonZero (valid_of_all)
    valid_row = Reshape (valid_at, minus_1)
    bbox = Gather <axis = 0> (rows, valid_row)
    ones = Cast <to = 6> (valid)
    bbox_num = ReduceSum <keepdims = 0> (ones, axis_1)
"""


def nms_graph(
    options: DecodeOptions, num_candidates: int, num_classes: int, ir_version: int, opset: int
) -> ModelProto:
    """From `ppfcos.modeling.postprocess.Candidates`, S per image, to bbox [N, 6] and bbox_num [B].

    The rows are label, score, x0, y0, x1, y1, image after image, best first. `ir_version` and `opset` are
    those of the model that the graph is appended to.
    """
    limited = 0 < options.class_top_k < num_candidates
    body = SCORES_BY_CLASS + (TOP_OF_CLASS if limited else ALL_OF_CLASS) + NMS
    body += (ONLY_VISIBLE if options.clip == "after" else ALL_BOXES) + ROWS
    boxes, values = f"float[B, {num_candidates}, 4]", f"[B, {num_candidates}]"
    model = parse_model(
        f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>'
        f"nms ({boxes} boxes, {boxes} shown, float{values} scores, int64{values} classes)"
        f"=> (float[N, 6] bbox, int32[B] bbox_num) {{{body}}}"
    )
    for node in model.graph.node:
        node.name = f"nms.{node.output[0]}"
    for name, value in _constants(options, num_candidates, num_classes).items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    return model


def _constants(options: DecodeOptions, num_candidates: int, num_classes: int) -> dict[str, np.ndarray]:
    kept = num_candidates if options.keep_top_k < 0 else min(options.keep_top_k, num_candidates)
    integers = {
        "axis_1": [1],
        "axis_2": [2],
        "minus_1": [-1],
        "huge": [num_candidates],
        "six_wide": [-1, 6],
        "four_wide": [1, 1, 4],
        "image_and_place": [0, 2],
        "left_side": 0,
        "class_numbers": np.arange(num_classes).reshape(1, -1, 1),
        "class_top_k": [options.class_top_k],
        "kept": [kept],
        "kept_of_class": [kept],
    }
    floats = {
        "zero": 0.0,
        "iou_threshold": [options.nms_threshold],
        "score_threshold": [options.score_threshold],
    }
    return {
        **{name: np.array(value, np.int64) for name, value in integers.items()},
        **{name: np.array(value, np.float32) for name, value in floats.items()},
    }
