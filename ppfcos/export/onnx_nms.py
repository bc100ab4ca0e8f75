"""Non-maximum suppression as an ONNX graph.

paddle2onnx turns Paddle's operator into a graph for one image only. This one takes any number of them, and
runs on candidates that are few already.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, numpy_helper
from onnx.parser import parse_model

from ppfcos.modeling.postprocess import PPFCOSDecode

# Letters: B images, S candidates, C classes, Q boxes kept of an image at the most, N boxes of all images.
SCORES_BY_CLASS = """
    class_column = Unsqueeze (classes, axis_1)
    score_row = Unsqueeze (scores, axis_1)
    is_class = Equal (class_column, class_numbers)
    every_score = Where (is_class, score_row, zero)
"""  # [B, C, S], 0 where the candidate is of another class
STRONGEST_OF_CLASS = """
    strongest, strongest_at = TopK (every_score, class_top_k)
    weakest = Slice (strongest, minus_1, huge, axis_2)
    is_strong = GreaterOrEqual (every_score, weakest)
    score_by_class = Where (is_strong, every_score, zero)
"""
ALL_OF_CLASS = """
    score_by_class = Identity (every_score)
"""
SUPPRESSION = """
    selected = NonMaxSuppression (boxes, score_by_class, kept_of_class, iou_threshold, score_threshold)
    places = Gather <axis = 1> (selected, image_and_place)
    surviving = GatherND (scores, places)
    size = Shape (scores)
    no_scores = ConstantOfShape (size)
    survivors = ScatterND (no_scores, places, surviving)
    best, best_at = TopK (survivors, kept)
    best_column = Unsqueeze (best_at, axis_2)
    best_at_four = Expand (best_column, four_wide)
    best_boxes = GatherElements <axis = 1> (shown, best_at_four)
    best_classes = GatherElements <axis = 1> (classes, best_at)
    survived = Greater (best, zero)
"""  # [B, Q] each: the survivors are strewn over all candidates' places, and the best Q of an image collected
# Of what lies wholly outside of the image, -1 was left.
ONLY_VISIBLE = """
    left_sides = Gather <axis = 2> (best_boxes, left_side)
    visible = GreaterOrEqual (left_sides, zero)
    valid = And (survived, visible)
"""
ALL_SURVIVORS = """
    valid = Identity (survived)
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
    decode: PPFCOSDecode, num_candidates: int, num_classes: int, ir_version: int, opset: int
) -> ModelProto:
    """What `PPFCOSDecode` does after it has its candidates.

    Args:
        decode: with its thresholds.
        num_candidates: S.
        num_classes: C.
        ir_version: of the model that this is joined to.
        opset: likewise.

    Returns:
        From `ppfcos.modeling.postprocess.Candidates` to bbox [N, 6] (label, score, x0, y0, x1, y1),
        image after image, the best first, and bbox_num [B].
    """
    limited = 0 < decode.class_top_k < num_candidates
    body = SCORES_BY_CLASS + (STRONGEST_OF_CLASS if limited else ALL_OF_CLASS) + SUPPRESSION
    body += (ONLY_VISIBLE if decode.clip == "after" else ALL_SURVIVORS) + ROWS
    boxes, values = f"float[B, {num_candidates}, 4]", f"[B, {num_candidates}]"
    model = parse_model(
        f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>'
        f"suppression ({boxes} boxes, {boxes} shown, float{values} scores, int64{values} classes)"
        f"=> (float[N, 6] bbox, int32[B] bbox_num) {{{body}}}"
    )
    for node in model.graph.node:
        node.name = f"suppression.{node.output[0]}"
    for name, value in _constants(decode, num_candidates, num_classes).items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    return model


def _constants(decode: PPFCOSDecode, num_candidates: int, num_classes: int) -> dict[str, np.ndarray]:
    kept = num_candidates if decode.keep_top_k < 0 else min(decode.keep_top_k, num_candidates)
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
        "class_top_k": [decode.class_top_k],
        "kept": [kept],
        "kept_of_class": [kept],
    }
    floats = {
        "zero": 0.0,
        "iou_threshold": [decode.nms_threshold],
        # Below 0 the places of other classes would be candidates.
        "score_threshold": [max(decode.score_threshold, 0.0)],
    }
    return {
        **{name: np.array(value, np.int64) for name, value in integers.items()},
        **{name: np.array(value, np.float32) for name, value in floats.items()},
    }
