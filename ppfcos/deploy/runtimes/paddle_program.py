"""Allowlist of operators in Paddle programs.

Paddle has operators that read and write files, open connections, print, compile code, and loop forever. The
operators listed here only compute tensors from tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ppfcos.deploy.bundle import FIRST_PIR_VERSION, OLD_PROGRAM_SUFFIX
from ppfcos.deploy.manifest import is_whole
from ppfcos.deploy.protobuf import BYTES, MAX_FIELDS, VARINT, InvalidMessageError, read_fields
from ppfcos.errors import BundleError, one_line

MAX_PROGRAM_BYTES = 16 << 20  # EfficientNet-B3's is below one megabyte
MAX_DIGITS = 20  # of 64-bit integers
MAX_VERSION = 1000  # of the format

STRUCTURE = "combine split"
TENSORS = """
    abs add add_n amax amin any all arange argmax argmin argsort assign assign_value assign_value_
    assign_out_ batch_norm batch_norm_ bicubic_interp bilinear_interp bitwise_and bitwise_not bitwise_or
    bitwise_xor bmm broadcast_tensors cast cast_ ceil celu channel_shuffle clip clip_ concat conv2d
    conv2d_transpose conv3d cos cumsum data deformable_conv depthwise_conv2d depthwise_conv2d_transpose
    divide dropout einsum elementwise_pow elu equal exp exp_ expand expand_as expm1 feed fetch flatten
    flatten_ flip floor floor_divide full full_batch_size_like full_int_array full_like full_with_tensor
    gather gather_nd gelu grid_sample greater_equal greater_than group_norm hardshrink hardsigmoid hardswish
    hardtanh index_sample index_select instance_norm isfinite isinf isnan kron label_smooth layer_norm
    leaky_relu leaky_relu_ less_equal less_than linear_interp linspace log log10 log1p log2 log_softmax
    logical_and logical_not logical_or logical_xor logsigmoid logsumexp masked_fill masked_select matmul
    matrix_nms max max_pool2d_with_index maximum maxout mean mean_all meshgrid min minimum mish
    multiclass_nms3 multiply nearest_interp nms nonzero not_equal numel one_hot ones ones_like p_norm pad
    pad3d pixel_shuffle pixel_unshuffle pool2d pow prelu prior_box prod put_along_axis reciprocal relu relu6
    relu_ remainder repeat_interleave reshape reshape_ roi_align roll round rsqrt scale scale_ scatter
    scatter_nd_add selu set_value set_value_ shape shape64 share_data_ sigmoid sigmoid_ sign silu sin slice
    softmax softmax_ softplus softshrink softsign split split_with_num sqrt sqrt_ square squeeze squeeze_
    stack stanh strided_slice subtract subtract_ sum swish sync_batch_norm_ take_along_axis tanh tanh_
    tanh_shrink thresholded_relu tile topk transpose trilinear_interp triu tril trunc unbind unfold uniform
    unsqueeze unsqueeze_ unstack where yolo_box zeros zeros_like
"""
# In the file, 0 is Paddle's dialect `builtin`, 1 is `pd_op`, and p is a parameter.
OPERATORS = frozenset(
    ["p", *(f"0.{name}" for name in STRUCTURE.split()), *(f"1.{name}" for name in TENSORS.split())]
)
NOT_OPERATORS = re.compile(r"[01]\.[at]_[a-z0-9_]+|(region|block)_[0-9]+")  # attributes, types, blocks


# The operators in programs of Paddle 2.6. Those that keep their name are listed above.
OLD_TENSORS = """
    arg_max arg_min bicubic_interp_v2 bilinear_interp_v2 bmm elementwise_add elementwise_div
    elementwise_floordiv elementwise_max elementwise_min elementwise_mod elementwise_mul elementwise_sub
    expand_as_v2 expand_v2 fill_any_like fill_constant fill_constant_batch_size_like fill_zeros_like
    flatten2 flatten_contiguous_range grid_sampler hard_shrink hard_sigmoid hard_swish hard_tanh
    isfinite_v2 isinf_v2 isnan_v2 linear_interp_v2 lookup_table_v2 matmul_v2 nearest_interp_v2 one_hot_v2
    range reduce_all reduce_amax reduce_amin reduce_any reduce_max reduce_mean reduce_min reduce_prod
    reduce_sum reshape2 size squeeze2 sync_batch_norm top_k_v2 transpose2 tril_triu trilinear_interp_v2
    unsqueeze2 where_index
"""
OLD_OPERATORS = frozenset([*TENSORS.split(), *OLD_TENSORS.split()])
# Fields of Paddle's framework.proto: blocks of a program; operators of a block; type and attributes of an
# operator; name and integer of an attribute.
BLOCKS, OPERATORS_OF_BLOCK, TYPE, ATTRIBUTES, NAME, INTEGER = 1, 4, 3, 4, 1, 3
ENDS = ("feed", "fetch")  # operators with the number of an input or output, which Paddle reads unchecked


def check_program(path: Path, content: bytes) -> int:
    """Refuse a program that may do more than compute.

    Returns:
        The version of its format: 0 in Paddle 2.6, from 1 in Paddle 3.0.

    Raises:
        BundleError: it is not a program, or has an operator that is not one of the lists above.
    """
    if len(content) > MAX_PROGRAM_BYTES:
        raise BundleError(
            f"{path}: the program is larger than {MAX_PROGRAM_BYTES >> 20} MiB; export it again"
        )
    if path.suffix == OLD_PROGRAM_SUFFIX:
        _check_old_program(path, content)
        return 0
    return _check_pir_program(path, content)


def _check_old_program(path: Path, content: bytes) -> None:
    try:
        operators = list(_old_operators(content))
    except (InvalidMessageError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: not a Paddle program ({one_line(error)}); export it again") from error
    if not operators:
        raise BundleError(f"{path}: not a Paddle program; export it again")
    for name, _ in operators:
        if name not in OLD_OPERATORS:
            raise _refused_operator(path, name)
    for kind in ENDS:
        numbers = sorted(number for name, number in operators if name == kind)
        if numbers != list(range(len(numbers))):
            raise BundleError(f"{path}: its operators {kind} are not numbered from 0; export it again")


def _old_operators(content: bytes) -> Iterator[tuple[str, int]]:
    """Names of the operators, and their attribute `col`: the number of an input or output, otherwise -1."""
    budget = [MAX_FIELDS]

    def parts(start: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
        for number, wire_type, first, last in read_fields(content, start, end, budget):
            if number == wanted and wire_type == BYTES:
                yield first, last

    def text(start: int, end: int, wanted: int) -> str:
        texts = [content[slice(*each)].decode() for each in parts(start, end, wanted)]
        return texts[-1] if texts else ""  # as protobuf reads a field that is given twice

    for block in parts(0, len(content), BLOCKS):
        for operator in parts(*block, OPERATORS_OF_BLOCK):
            integers = [
                value
                for attribute in parts(*operator, ATTRIBUTES)
                if text(*attribute, NAME) == "col"
                for number, wire_type, value, _ in read_fields(content, *attribute, budget)
                if number == INTEGER and wire_type == VARINT
            ]
            column = integers[0] if len(integers) == 1 else -1
            yield text(*operator, TYPE), column


def _refused_operator(path: Path, name: Any) -> BundleError:
    return BundleError(
        f"{path}: the operator {str(name)[:60]!r} is refused, it is not one of a network "
        f"({Path(__file__).name} lists these)"
    )


def _check_pir_program(path: Path, content: bytes) -> int:
    try:
        program = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refused,
            parse_int=_int,
        )
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not a Paddle program ({one_line(error)}); export it again") from error
    is_program = isinstance(program, dict) and isinstance(program.get("program"), dict)
    version = program["base_code"].get("version") if is_program and _has_base(program) else None
    if not is_whole(version, FIRST_PIR_VERSION, MAX_VERSION):
        raise BundleError(f"{path}: not a Paddle program; export it again")
    pending: list[Any] = [program]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            name = value.get("#", "p")
            if not isinstance(name, str) or not (name in OPERATORS or NOT_OPERATORS.fullmatch(name)):
                raise _refused_operator(path, name)
            if name in OPERATORS and "#" in value and not _has_attributes(value):
                raise BundleError(f"{path}: an operator {name} lacks attributes; export it again")
            pending += value.values()
    return version


def _has_base(program: dict[str, Any]) -> bool:
    return isinstance(program.get("base_code"), dict)


def _has_attributes(operator: dict[str, Any]) -> bool:
    """Whether an operator has the attributes of its outputs, which Paddle reads unchecked."""
    attributes, outputs = operator.get("OA"), operator.get("O")
    if not isinstance(attributes, list):
        return False
    if operator["#"] == "p":
        return len(attributes) == 3
    if not isinstance(outputs, list):
        return False
    values = [each.get("AT") if isinstance(each, dict) else None for each in attributes]
    lists = [each.get("D") if isinstance(each, dict) else None for each in values]
    return all(isinstance(each, list) and len(each) == len(outputs) for each in lists)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of two equal keys, another parser may take the other one.
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("duplicate key")
    return values


def _int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of more than {MAX_DIGITS} digits")
    return int(digits)


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not valid JSON")
