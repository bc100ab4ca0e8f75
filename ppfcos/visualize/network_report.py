"""What an exported network is made of, as text for a terminal; and the words that the drawing shares with it.

`figures` is what `ppfcos.analysis.info.NetworkInfo` gives, `layer` one of its `layers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ppfcos.console import printable

UNKNOWN = "?"
CPU_DEVICES = ("CPUExecutionProvider", "CPU")  # as ONNX Runtime and OpenVINO call it
_TEXTS = ("layer", "part", "what", "output", "in")
_COLUMNS = (*_TEXTS, "parameters", "constants", "writes", "GFLOPs", "scale", "ms")


def network_text(figures: Mapping[str, Any]) -> str:
    """Everything that fits on a screen.

    Args:
        figures: of the network.

    Returns:
        Lines without control characters.
    """
    rows = [(name, text) for name, text in summary_rows(figures) if text]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {text}" for name, text in rows]
    return "\n".join(printable(line) for line in [*lines, "", *_table(figures)])


def summary_rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures of the network as a whole: a name and a text each, empty where there is nothing to say."""
    rows = [
        ("network", f"{figures['bundle']}/{figures['file']}: {figures['kind']}, {figures['precision']}, "
         f"opset {figures['opset']}, {bytes_text(figures['file_bytes'])}"),
        ("one run", f"{figures['batch']} picture{'s' * (figures['batch'] > 1)} of "
         f"{figures['height']}x{figures['width']}; all figures are for it"),
    ]  # fmt: skip
    for side in ("inputs", "outputs"):
        rows += [(side if i == 0 else " ", _value_text(value)) for i, value in enumerate(figures[side])]
    return [
        *rows,
        ("layers", f"{len(figures['layers'])}, of {sum(figures['operations'].values())} operations"),
        ("operations", counted(figures["operations"])),
        ("parameters", f"{figures['parameters']:,}; constants of {bytes_text(figures['weight_bytes'])}"),
        ("writes", f"{bytes_text(figures['activation_bytes'])} between layers"),
        ("work", _work(figures)),
        ("in float", in_float_text(figures)),
        ("time", _time(figures["time"])),
        ("on the CPU", on_cpu_text(figures["time"])),
    ]


def shape_text(shape: Sequence[int | None] | None) -> str:
    """Such as 1x256x100x168, with ? for what is not known before the network runs."""
    if shape is None:
        return UNKNOWN
    return "x".join(UNKNOWN if side is None else str(side) for side in shape) or "one number"


def bytes_text(number: int | None) -> str:
    """Such as 1.2 MB (millions); ? for None."""
    if number is None:
        return UNKNOWN
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.{1 if number < 100 * size else 0}f} {unit}"
    return f"{number} B"


def work_text(multiply_adds: int | None) -> str:
    """In GFLOPs, which are multiply-adds as in the literature; ? for None."""
    if multiply_adds is None:
        return UNKNOWN
    giga = multiply_adds / 1e9
    if 0 < giga < 0.0001:
        return "<0.0001"
    return "0" if not giga else f"{giga:.2f}" if giga >= 1 else f"{giga:.4f}"


def time_text(milliseconds: float | None) -> str:
    """In milliseconds; nothing for a layer that is done within another one."""
    return (
        "" if milliseconds is None else f"{milliseconds:.3f}" if milliseconds < 1 else f"{milliseconds:.2f}"
    )


def scale_text(layer: Mapping[str, Any]) -> str:
    """What a step of a layer's last quantised value is worth, and which integer stands for 0."""
    if not layer["scales"]:
        return ""
    last = layer["scales"][-1]
    return f"{last['scale'][0]:.3g}, 0 is {last['zero_point']}"


def title_of(layer: Mapping[str, Any]) -> str:
    """What a layer does, such as `Conv 3×3 64→64, norm, ReLU`."""
    return ", ".join([layer["kind"], *layer["fused"]])


def part_of(layer: Mapping[str, Any]) -> str:
    """Where a layer belongs, such as `backbone /16`."""
    return layer["part"] + (f" /{layer['stride']}" if layer["stride"] else "")


def output_of(layer: Mapping[str, Any]) -> str:
    """The shapes of what a layer gives, each once."""
    return " and ".join(dict.fromkeys(shape_text(value["shape"]) for value in layer["outputs"]))


def precision_of(layer: Mapping[str, Any]) -> str:
    """In what a layer is computed, with what of it fell back to float in an INT8 file."""
    if layer["precision"] == "int8" and layer["in_float"]:
        return "int8 + float"
    return layer["precision"]


def counted(kinds: Mapping[str, int]) -> str:
    """Such as `54 Conv, 33 Relu`."""
    return ", ".join(f"{number} {kind}" for kind, number in kinds.items())


def in_float_text(figures: Mapping[str, Any]) -> str:
    """What fell back to float in an INT8 file; nothing for another file."""
    if figures["in_float"] is None:
        return ""
    return counted(figures["in_float"]) or "nothing, all arithmetic is in eight bits"


def on_cpu_text(time: Mapping[str, Any] | None) -> str:
    """What the device did not take; nothing where the network was not run."""
    if time is None:
        return ""
    if time["device"] in CPU_DEVICES:
        return f"everything: {time['device']} is the only one that was asked for"
    return counted(time["kinds_on_cpu"]) or f"nothing: {time['device']} took every operation"


def _work(figures: Mapping[str, Any]) -> str:
    unknown = figures["uncounted_layers"]
    left_out = (
        f"; without {unknown} layers whose sizes are not known before the network runs" if unknown else ""
    )
    return f"{work_text(figures['multiply_adds'])} GFLOPs (multiply-adds){left_out}"


def _time(time: Mapping[str, Any] | None) -> str:
    if time is None:
        return ""
    return (
        f"{time['milliseconds']:.1f} ms in the layers, {time['runtime']} on {time['device']} with "
        f"{time['threads']} threads"
    )


def _value_text(value: Mapping[str, Any]) -> str:
    text = f"{value['name']}  {value['type']}  {shape_text(value['shape'])}"
    scales = value.get("scales")
    if not scales:
        return text
    return (
        f"{text}  x {min(scales):.3g} to {max(scales):.3g}"
        if len(scales) > 1
        else f"{text}  x {scales[0]:.3g}"
    )


def _table(figures: Mapping[str, Any]) -> list[str]:
    """The layers, a line each, in columns as wide as they must be."""
    rows = [_COLUMNS, *(_row(layer) for layer in figures["layers"])]
    kept = [i for i in range(len(_COLUMNS)) if any(row[i] for row in rows[1:])]
    widths = {i: max(len(row[i]) for row in rows) for i in kept}
    return [
        "  ".join(
            f"{row[i]:<{widths[i]}}" if _COLUMNS[i] in _TEXTS else f"{row[i]:>{widths[i]}}" for i in kept
        ).rstrip()
        for row in rows
    ]


def _row(layer: Mapping[str, Any]) -> Iterable[str]:
    return (
        layer["name"],
        part_of(layer),
        title_of(layer),
        output_of(layer),
        precision_of(layer),
        f"{layer['parameters']:,}" if layer["parameters"] else "",
        bytes_text(layer["weight_bytes"]) if layer["weight_bytes"] else "",
        bytes_text(layer["activation_bytes"]),
        work_text(layer["multiply_adds"]) if layer["multiply_adds"] != 0 else "",
        scale_text(layer),
        time_text(layer["milliseconds"]),
    )
