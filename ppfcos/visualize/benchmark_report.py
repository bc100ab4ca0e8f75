"""The benchmark of exported models as a Markdown table and as an HTML page.

`content` is the JSON that `ppfcos benchmark --output` writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppfcos.console import printable
from ppfcos.visualize.page import render

MODEL_KEYS = ("bundle", "runtime", "precision")
IN_NETWORK = "in the network"
_STYLES = ("first", "second", "third", "fourth")  # of models, and of stages


def benchmark_text(content: Mapping[str, Any]) -> str:
    """Format the benchmark as text without control characters, with an aligned Markdown table."""
    table = [column_names(content), *table_rows(content)]
    text_columns = len(varying_keys(content))
    columns = [
        [f"{cell:{'<' if i < text_columns else '>'}{max(map(len, column))}}" for cell in column]
        for i, column in enumerate(zip(*table))
    ]
    header, *rows = (f"| {' | '.join(cells)} |" for cells in zip(*columns))
    rules = ("-" * (len(column[0]) + 1) for column in columns)
    rule = "|" + "".join(f"{dashes}{'-|' if i < text_columns else ':|'}" for i, dashes in enumerate(rules))
    lines = [*description(content), "", header, rule, *rows, "", *notes(content)]
    return "\n".join(map(printable, lines))


def benchmark_page(content: Mapping[str, Any]) -> str:
    """Render the benchmark as an HTML page."""
    rows = content["rows"]
    *stages, total = rows[0]["milliseconds"]
    styles: dict[str, str] = {}
    speed_bars, stage_bars = [], []
    for row in rows:
        name = model_name(content, row)
        styles.setdefault(name, _STYLES[len(styles) % len(_STYLES)])
        bar = {"name": f"{row['threads']} × {row['streams']}, batch {row['batch']}", "note": name}
        speed = row["images_per_second"]
        text = f"{short_number(speed)} ({row['ratio']:.2f})"
        speed_bars.append({**bar, "text": text, "parts": [{"value": speed, "style": styles[name]}]})
        times = {stage: row["milliseconds"][stage]["median"] for stage in stages}
        parts = [
            {"value": time, "style": style, "title": f"{stage} {short_number(time)} ms"}
            for (stage, time), style in zip(times.items(), _STYLES)
        ]
        stage_bars.append(
            {**bar, "text": f"{_median_and_p99(row['milliseconds'][total])} ms", "parts": parts}
        )
    return render(
        "benchmark.html",
        title="Benchmark of exported models",
        description=description(content),
        speed_bars=speed_bars,
        stages=list(zip(stages, _STYLES)),
        stage_bars=stage_bars,
        column_names=column_names(content),
        rows=table_rows(content),
        text_columns=len(varying_keys(content)),
        notes=[line.split("`") for line in notes(content)],
    )


def description(content: Mapping[str, Any]) -> list[str]:
    """Lines on the machine, the versions, the model and the images."""
    first, varying = content["rows"][0], varying_keys(content)
    common = [f"{key} {_value(content, first, key)}" for key in MODEL_KEYS if key not in varying]
    images = content["images"]
    sizes = sorted({f"{height}x{width}" for height, width in images["sizes"]})
    sizes_text = sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes"
    mean_size = f"{images['bytes'] / 1000:.0f} kB each on average, read before the start"
    if images["folder"] is None:
        source = (
            f"{images['number']} synthetic images of {sizes_text}, {mean_size}; they are not resized: "
            "measure your own with --images FOLDER"
        )
    else:
        source = f"{images['number']} images of {images['folder']}, {sizes_text}, {mean_size}"
    return [
        f"{content['date']}, {content['machine']}",
        ", ".join(f"{name} {version}" for name, version in content["versions"].items()),
        *([", ".join(common)] if common else []),
        source,
    ]


def notes(content: Mapping[str, Any]) -> list[str]:
    """Lines that explain the columns, with their names in backticks, and say what was skipped."""
    rows = content["rows"]
    name = model_name(content, rows[0])
    lines = [
        "milliseconds of a request of `batch` images: median / 99th percentile; "
        f"rows measured in turn, {content['rounds']} rounds",
        f"ratio: images/s relative to the first row{f' ({name})' if name else ''}",
    ]
    if any(row["boxes_from"] == "network" for row in rows):
        lines.append(f"{IN_NETWORK}: decoding and NMS are part of the network and of its time")
    if any(row["threads"] * row["streams"] > content["cores"] for row in rows):
        lines.append(f"where threads × streams exceeds {content['cores']}, streams share the cores")
    return lines + list(content["left_out"])


def varying_keys(content: Mapping[str, Any]) -> list[str]:
    """The MODEL_KEYS in which the rows differ; they are the first columns of the table."""
    return [key for key in MODEL_KEYS if len({row[key] for row in content["rows"]}) > 1]


def column_names(content: Mapping[str, Any]) -> list[str]:
    """The headings of the table."""
    stages = [name.replace("_", " ") for name in content["rows"][0]["milliseconds"]]
    numbers = ["boxes", "requests", "images/s", "ratio"]
    return [*varying_keys(content), "threads", "streams", "batch", *stages, *numbers]


def table_rows(content: Mapping[str, Any]) -> list[list[str]]:
    """The cells of the table."""
    return [
        [
            *(_value(content, row, key) for key in varying_keys(content)),
            *(str(row[key]) for key in ("threads", "streams", "batch")),
            *(
                IN_NETWORK
                if stage == "postprocessing" and row["boxes_from"] == "network"
                else _median_and_p99(times)
                for stage, times in row["milliseconds"].items()
            ),
            f"{row['boxes_per_image']:.1f}",
            str(row["requests"]),
            short_number(row["images_per_second"]),
            f"{row['ratio']:.2f}",
        ]
        for row in content["rows"]
    ]


def model_name(content: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """What distinguishes the model of a row; empty if there is only one model."""
    return " ".join(_value(content, row, key) for key in varying_keys(content))


def short_number(value: float) -> str:
    """Format with three digits, or all digits before the point."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _value(content: Mapping[str, Any], row: Mapping[str, Any], key: str) -> str:
    """A model key of a row; a bundle by its folder's name unless two bundles share it."""
    if key != "bundle":
        return row[key]
    paths = {each["bundle"] for each in content["rows"]}
    name = Path(row["bundle"]).name
    return name if sum(Path(path).name == name for path in paths) == 1 else row["bundle"]


def _median_and_p99(times: Mapping[str, float]) -> str:
    return f"{short_number(times['median'])} / {short_number(times['p99'])}"
