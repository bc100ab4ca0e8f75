"""A benchmark of exported models as text: a table, and what is to be known about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppfcos.console import printable

WHAT = ("bundle", "runtime", "precision")
IN_NETWORK = "in the network"


def benchmark_text(content: Mapping[str, Any]) -> str:
    """The table, between what was measured and what was not.

    Args:
        content: what the command writes as JSON.

    Returns:
        Lines without control characters. The table is one of Markdown, with its columns aligned.
    """
    lines = [
        *about(content),
        "",
        *_aligned([column_names(content), *table_rows(content)], len(varying_names(content))),
        "",
        *notes(content),
    ]
    return "\n".join(printable(line) for line in lines)


def about(content: Mapping[str, Any]) -> list[str]:
    """What was measured, on what, and with which pictures.

    Args:
        content: what the command writes as JSON.

    Returns:
        Lines.
    """
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    first, varying = content["rows"][0], varying_names(content)
    same = [f"{name} {_value(content, first, name)}" for name in WHAT if name not in varying]
    return [
        f"{content['date']}, {content['machine']}",
        versions,
        *([", ".join(same)] if same else []),
        _pictures(content["images"]),
    ]


def notes(content: Mapping[str, Any]) -> list[str]:
    """How the columns are to be read, and what was left out.

    Args:
        content: what the command writes as JSON.

    Returns:
        Lines.
    """
    rows = content["rows"]
    lines = [
        "milliseconds of a request of `batch` pictures: median / 99th percentile; "
        f"all rows by turns, {content['rounds']} rounds",
        f"ratio: images/s to those of the first row{_its_name(content, rows[0])}",
    ]
    if any(row["boxes_from"] == "network" for row in rows):
        lines.append(f"{IN_NETWORK}: boxes are decoded and suppressed (NMS) there, and counted there")
    if any(row["threads"] * row["streams"] > content["cores"] for row in rows):
        lines.append(f"where threads × streams is above {content['cores']}, they share the cores")
    return lines + list(content["left_out"])


def varying_names(content: Mapping[str, Any]) -> list[str]:
    """That by which the rows differ; it has columns, before those of numbers.

    Args:
        content: what the command writes as JSON.

    Returns:
        Of WHAT.
    """
    return [name for name in WHAT if len({row[name] for row in content["rows"]}) > 1]


def column_names(content: Mapping[str, Any]) -> list[str]:
    """The headings of the table.

    Args:
        content: what the command writes as JSON.

    Returns:
        Those of `varying_names`, then those of numbers.
    """
    stages = [name.replace("_", " ") for name in content["rows"][0]["milliseconds"]]
    figures = ["boxes", "requests", "images/s", "ratio"]
    return [*varying_names(content), "threads", "streams", "batch", *stages, *figures]


def table_rows(content: Mapping[str, Any]) -> list[list[str]]:
    """What stands below the headings.

    Args:
        content: what the command writes as JSON.

    Returns:
        Rows of as many texts.
    """
    return [
        [
            *(_value(content, row, name) for name in varying_names(content)),
            *(str(row[name]) for name in ("threads", "streams", "batch")),
            *(_stage(row, name) for name in row["milliseconds"]),
            f"{row['boxes_per_image']:.1f}",
            str(row["requests"]),
            short_number(row["images_per_second"]),
            f"{row['ratio']:.2f}",
        ]
        for row in content["rows"]
    ]


def row_name(content: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """What tells the model of a row from those of the others.

    Args:
        content: what the command writes as JSON.
        row: one of its rows.

    Returns:
        Its name; empty where there is one model only.
    """
    return " ".join(_value(content, row, name) for name in varying_names(content))


def short_number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _value(content: Mapping[str, Any], row: Mapping[str, Any], name: str) -> str:
    """A bundle is named by its folder's own name, unless two of them share it."""
    if name != "bundle":
        return row[name]
    paths = {each["bundle"] for each in content["rows"]}
    own = Path(row["bundle"]).name
    return own if sum(Path(path).name == own for path in paths) == 1 else row["bundle"]


def _stage(row: Mapping[str, Any], name: str) -> str:
    if name == "postprocessing" and row["boxes_from"] == "network":
        return IN_NETWORK
    times = row["milliseconds"][name]
    return f"{short_number(times['median'])} / {short_number(times['p99'])}"


def _its_name(content: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    name = row_name(content, row)
    return f" ({name})" if name else ""


def _pictures(images: Mapping[str, Any]) -> str:
    sizes = sorted({f"{height}x{width}" for height, width in images["sizes"]})
    of_sizes = sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes"
    kilobytes = f"{images['bytes'] / 1000:.0f} kB each on average, read before the start"
    if images["folder"] is None:
        return (
            f"{images['number']} drawn pictures of {of_sizes}, {kilobytes}; "
            "they are not resized, and real ones (--images FOLDER) give other times"
        )
    return f"{images['number']} pictures of {images['folder']}, {of_sizes}, {kilobytes}"


def _aligned(rows: Sequence[Sequence[str]], words: int) -> list[str]:
    """Markdown's table: of each row so many words, then numbers, which end below one another."""
    columns = [
        [f"{cell:{'<' if place < words else '>'}{max(map(len, column))}}" for cell in column]
        for place, column in enumerate(zip(*rows))
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in zip(*columns)]
    rules = ["-" * len(column[0]) for column in columns]
    ends = ["-|" if place < words else ":|" for place in range(len(columns))]
    return [lines[0], "|" + "".join(f"-{rule}{end}" for rule, end in zip(rules, ends)), *lines[1:]]
