"""Describes an exported network as text and as an HTML page.

`info` is the result of `ppfcos.analysis.info.NetworkInfo.describe`, `layer` one of its `layers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ppfcos.console import printable
from ppfcos.visualize.page import render

UNKNOWN = "?"
CPU_DEVICES = ("CPUExecutionProvider", "CPU")  # of ONNX Runtime and OpenVINO
TEXT_COLUMNS = 5  # the first columns of the table are text, the others numbers
COLUMNS = (
    *("layer", "part", "operation", "output", "precision"),
    *("parameters", "weights", "activations", "GMACs", "scale", "ms"),
)


def network_text(info: Mapping[str, Any]) -> str:
    """Format the network and a table of its layers, without control characters."""
    rows = summary_rows(info)
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {text}" for name, text in rows]
    table = [COLUMNS, *map(layer_cells, info["layers"])]
    columns = [column for column in zip(*table) if any(column[1:])]
    aligned = []
    for column in columns:
        width = max(map(len, column))
        align = "<" if COLUMNS.index(column[0]) < TEXT_COLUMNS else ">"
        aligned.append([f"{cell:{align}{width}}" for cell in column])
    lines += ["", *("  ".join(cells).rstrip() for cells in zip(*aligned))]
    return "\n".join(map(printable, lines))


def network_page(info: Mapping[str, Any], drawing: str) -> str:
    """Render the page with the drawing, an SVG of `ppfcos.visualize.network_drawing`."""
    from ppfcos.visualize.network_drawing import COLORS, color_of

    time = info["time"]
    tiles = {
        "GMACs": gmacs_text(info["multiply_adds"]),
        "parameters": f"{info['parameters'] / 1e6:.2f} M",
        "file": size_text(info["file_bytes"]),
        "activations": size_text(info["activation_bytes"]),
        "layers": len(info["layers"]),
        "operators": sum(info["operations"].values()),
        **({"time": f"{time['milliseconds']:.1f} ms"} if time else {}),
    }
    colors = {color_of(layer) for layer in info["layers"]}
    keys = ("parameters", "weight_bytes", "activation_bytes", "multiply_adds", "milliseconds")
    return render(
        "network.html",
        title=f"{info['bundle']}: {info['file']}",
        tiles=tiles,
        summary=summary_rows(info),
        colors={name: meaning for name, meaning in COLORS.items() if name in colors},
        drawing=drawing,
        layers=[
            {"cells": dict(zip(COLUMNS, layer_cells(layer))), "values": [layer[key] for key in keys]}
            for layer in info["layers"]
        ],
        is_timed=bool(time),
    )


def summary_rows(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and text of each property of the network."""
    time, uncounted = info["time"], info["uncounted_layers"]
    size = size_text(info["file_bytes"])
    path = f"{info['bundle']}/{info['file']}"
    rows = [
        ("network", f"{path}: {info['kind']}, {info['precision']}, opset {info['opset']}, {size}"),
        (
            "input size",
            f"{info['batch']} × {info['height']}x{info['width']}; all numbers are of one such run",
        ),
    ]
    for key in ("inputs", "outputs"):
        rows += [(key if i == 0 else "", _value_text(value)) for i, value in enumerate(info[key])]
    rows += [
        ("layers", f"{len(info['layers'])}, of {sum(info['operations'].values())} operators"),
        ("operators", counts_text(info["operations"])),
        ("parameters", f"{info['parameters']:,}; weights of {size_text(info['weight_bytes'])}"),
        ("activations", f"{size_text(info['activation_bytes'])} between layers"),
        (
            "work",
            f"{gmacs_text(info['multiply_adds'])} GMACs (multiply-adds)"
            + (f"; without {uncounted} layers whose shapes are unknown" if uncounted else ""),
        ),
    ]
    if info["in_float"] is not None:
        rows.append(("in float", counts_text(info["in_float"]) or "nothing: all arithmetic is INT8"))
    if time:
        runtime = f"{time['runtime']} on {time['device']} with {time['threads']} threads"
        rows.append(("time", f"{time['milliseconds']:.1f} ms, {runtime}"))
        if time["device"] not in CPU_DEVICES:
            on_cpu = counts_text(time["kinds_on_cpu"])
            rows.append(("on the CPU", on_cpu or f"nothing: {time['device']} ran every operator"))
    return rows


def layer_cells(layer: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts of a layer in the order of COLUMNS; empty where there is nothing to say."""
    return (
        layer["name"],
        part_text(layer),
        title_text(layer),
        output_text(layer),
        precision_text(layer),
        f"{layer['parameters']:,}" if layer["parameters"] else "",
        size_text(layer["weight_bytes"]) if layer["weight_bytes"] else "",
        size_text(layer["activation_bytes"]),
        gmacs_text(layer["multiply_adds"]) if layer["multiply_adds"] != 0 else "",
        scale_text(layer),
        time_text(layer["milliseconds"]),
    )


def shape_text(shape: Sequence[int | None] | None) -> str:
    """Format a shape, such as 1x256x100x168, with ? for what is unknown."""
    if shape is None:
        return UNKNOWN
    return "x".join(UNKNOWN if side is None else str(side) for side in shape) or "scalar"


def size_text(number: int | None) -> str:
    """Format a number of bytes, such as 1.2 MB (10^6 bytes)."""
    if number is None:
        return UNKNOWN
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.{1 if number < 100 * size else 0}f} {unit}"
    return f"{number} B"


def gmacs_text(multiply_adds: int | None) -> str:
    """Format multiply-adds in 10^9."""
    if multiply_adds is None:
        return UNKNOWN
    giga = multiply_adds / 1e9
    if 0 < giga < 0.0001:
        return "<0.0001"
    return "0" if not giga else f"{giga:.2f}" if giga >= 1 else f"{giga:.4f}"


def time_text(milliseconds: float | None) -> str:
    """Format milliseconds; empty for a layer that is fused into another."""
    if milliseconds is None:
        return ""
    return f"{milliseconds:.3f}" if milliseconds < 1 else f"{milliseconds:.2f}"


def scale_text(layer: Mapping[str, Any]) -> str:
    """Scale and zero point of the last quantized activation of a layer."""
    if not layer["scales"]:
        return ""
    last = layer["scales"][-1]
    return f"{last['scale'][0]:.3g}, zero point {last['zero_point']}"


def title_text(layer: Mapping[str, Any]) -> str:
    """The operation of a layer, such as `Conv 3×3 64→64, norm, ReLU`."""
    return ", ".join([layer["kind"], *layer["fused"]])


def part_text(layer: Mapping[str, Any]) -> str:
    """Part and stride of a layer, such as `backbone /16`."""
    return layer["part"] + (f" /{layer['stride']}" if layer["stride"] else "")


def output_text(layer: Mapping[str, Any]) -> str:
    """The shapes of the outputs of a layer, each once."""
    return " and ".join(dict.fromkeys(shape_text(value["shape"]) for value in layer["outputs"]))


def precision_text(layer: Mapping[str, Any]) -> str:
    """The precision of a layer, and whether some of an INT8 layer is in float."""
    return layer["precision"] + (" + float" if layer["precision"] == "int8" and layer["in_float"] else "")


def counts_text(counts: Mapping[str, int]) -> str:
    """Format counts, such as `54 Conv, 33 Relu`."""
    return ", ".join(f"{number} {name}" for name, number in counts.items())


def _value_text(value: Mapping[str, Any]) -> str:
    text = f"{value['name']}  {value['type']}  {shape_text(value['shape'])}"
    scales = value.get("scales")
    if not scales:
        return text
    low, high = min(scales), max(scales)
    return f"{text}  scale {low:.3g}" + (f" to {high:.3g}" if len(scales) > 1 else "")
