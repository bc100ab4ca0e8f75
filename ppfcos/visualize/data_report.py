"""The report of a data check as JSON, as text and as an HTML page; the last two are made from the first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from ppfcos.console import printable
from ppfcos.data.check.check import DataReport
from ppfcos.data.check.levels import Geometry
from ppfcos.data.check.rules import SIDE_BINS, SectionCheck
from ppfcos.data.classes import counted
from ppfcos.data.images import ImageUnreadable, read_image
from ppfcos.data.issues import ISSUE_TYPES, TRAINING
from ppfcos.visualize.drawing import shrink
from ppfcos.visualize.page import render

JSON_VERSION = 1
EXAMPLES = 3  # of each type in the text
MOST_CLASSES = 10  # in the text
MOST_THUMBNAILS, MOST_THUMBNAILS_OF_A_TYPE = 120, 6  # on the page
MOST_LINES_OF_A_TYPE = 100  # on the page
_THUMBNAIL_SIDE, _MARGIN = 260, 14  # pixels; the margin shows boxes that reach beyond the image
_CIRCLE_RADIUS = 9  # pixels, around a box smaller than this
_OTHER_BOX, _ISSUE_BOX = (70, 170, 70), (60, 40, 230)  # BGR


def json_report(report: DataReport, accepted: Sequence[str] = ()) -> dict[str, Any]:
    """Collect the counts of each section, the issues, and their types with what follows from each.

    Args:
        report: of the check.
        accepted: issue types that the user accepts.
    """
    geometry = report.geometry
    return {
        "version": JSON_VERSION,
        "sections": [_section_entry(section, geometry) for section in report.sections],
        "input": {
            "sizes": [[*resize.target, resize.keep_ratio] for resize in geometry.resizes],
            "strides": list(geometry.strides),
            "size_ranges": list(geometry.size_ranges),
            "center_sampling_radius": geometry.radius,
            "transforms_not_considered": list(geometry.left_out),
        },
        "kinds": [
            {
                "kind": kind,
                "section": section.dataset.section,
                "severity": ISSUE_TYPES[kind].severity.value,
                "meaning": ISSUE_TYPES[kind].meaning,
                "outcome": ISSUE_TYPES[kind].outcome.value if section.dataset.section == TRAINING else None,
                "consequence": report.consequence(kind, section),
                "fix": ISSUE_TYPES[kind].fix or None,
                "number": len(findings),
                "accepted": kind in accepted,
            }
            for kind, section, findings in report.by_type()
        ],
        "findings": [finding._asdict() for finding in report.issues],
    }


def _section_entry(section: SectionCheck, geometry: Geometry) -> dict[str, Any]:
    raw, counts = section.dataset, section.counts
    entry: dict[str, Any] = {
        "section": raw.section,
        "source": raw.source,
        "images": counts.images,
        "images_without_objects": counts.empty,
        "objects": counts.objects,
        "crowds": counts.crowds,
        "classes": [
            {"name": category.name, "objects": objects}
            for category, objects in zip(raw.categories, counts.per_class)
        ],
    }
    if raw.section == TRAINING:
        edges = ["0", *map(str, SIDE_BINS)]
        entry["box_sizes"] = {
            "longer_side": [f"{low}–{high}" for low, high in zip(edges, edges[1:])] + [f"over {edges[-1]}"],
            "columns": [*(f"stride {stride}" for stride in geometry.strides), "covered", "no location"],
            "boxes": counts.levels.tolist(),
        }
    return entry


def text_report(report: DataReport, accepted: Sequence[str] = ()) -> str:
    """Format the counts and the issues, with a few examples of each type, without control characters."""
    content = json_report(report, accepted)
    lines: list[str] = []
    for section in content["sections"]:
        lines += [*_section_lines(section, content["input"]), ""]
    for entry, issues in _issues_by_type(content):
        lines += [
            f"{_severity(entry)}: {entry['kind']}: {len(issues)} × {entry['meaning']}, in {entry['section']}",
            f"    {entry['consequence']}",
            *([f"    --fix {entry['fix']}"] if entry["fix"] else []),
            *(f"      {issue['where']}: {issue['detail']}" for issue in issues[:EXAMPLES]),
            *([f"      and {len(issues) - EXAMPLES} more"] if len(issues) > EXAMPLES else []),
            "",
        ]
    lines.append(_summary(content))
    return "\n".join(map(printable, lines))


def _section_lines(section: Mapping[str, Any], network_input: Mapping[str, Any]) -> Iterator[str]:
    classes = sorted(section["classes"], key=lambda entry: -entry["objects"])
    names = ", ".join(f"{entry['name']} {entry['objects']}" for entry in classes[:MOST_CLASSES])
    more = len(classes) - MOST_CLASSES
    yield f"{section['section']}: {section['source']}"
    yield f"  {_counts_text(section)}; {counted(len(classes), 'class', 'classes')}"
    yield f"  objects of each class: {names}{f', and {more} more' if more > 0 else ''}"
    if "box_sizes" in section:
        table = section["box_sizes"]
        widths = [max(len(name), 7) for name in table["columns"]]
        header = "  ".join(f"{name:>{width}}" for name, width in zip(table["columns"], widths))
        yield ""
        yield f"  boxes by longer side in pixels and by level, {_sizes_text(network_input)}"
        yield f"    {'':<10}{header}"
        for name, numbers in zip(table["longer_side"], table["boxes"]):
            if any(numbers):
                cells = "  ".join(f"{number or '·':>{width}}" for number, width in zip(numbers, widths))
                yield f"    {name:<10}{cells}"
        yield f"  {_unassigned_text(table)}"


def html_page(report: DataReport, title: str, accepted: Sequence[str] = ()) -> str:
    """Render the page: title is what was checked. It shows a bounded number of images at a bounded size."""
    content = json_report(report, accepted)
    remaining, groups = MOST_THUMBNAILS, []
    images = _images_by_path(report)
    for entry, issues in _issues_by_type(content):
        first_of_image = {issue["image"]: issue for issue in reversed(issues) if issue["image"]}
        shown = list(first_of_image.values())[::-1][: min(MOST_THUMBNAILS_OF_A_TYPE, remaining)]
        remaining -= len(shown)
        groups.append(
            {
                "type": entry,
                "severity": _severity(entry),
                "anchor": f"{entry['kind']}-{entry['section']}",
                "issues": issues[:MOST_LINES_OF_A_TYPE],
                "more": len(issues) - MOST_LINES_OF_A_TYPE,
                "thumbnails": [(issue, _thumbnail(issue, images)) for issue in shown],
            }
        )
    return render(
        "data_check.html",
        title=title,
        summary=_summary(content),
        groups=groups,
        sections=[_section_context(section) for section in content["sections"]],
        sizes_text=_sizes_text(content["input"]),
    )


def _section_context(section: Mapping[str, Any]) -> dict[str, Any]:
    context = {
        "name": section["section"],
        "source": section["source"],
        "counts": _counts_text(section),
        "class_bars": [
            {
                "name": entry["name"],
                "text": entry["objects"],
                "parts": [{"value": entry["objects"], "style": "first"}],
            }
            for entry in section["classes"]
        ],
    }
    if "box_sizes" in section:
        table = section["box_sizes"]
        levels = len(table["columns"]) - 2
        styles = [*(f"level{i % 7}" for i in range(levels)), "covered", "unassigned"]
        context["levels"] = list(zip(table["columns"], styles))
        context["level_bars"] = [
            {
                "name": name,
                "text": sum(numbers),
                "parts": [
                    {"value": number, "style": style, "title": f"{name} {column}: {number}"}
                    for number, column, style in zip(numbers, table["columns"], styles)
                ],
            }
            for name, numbers in zip(table["longer_side"], table["boxes"])
        ]
        context["unassigned"] = _unassigned_text(table)
    return context


def _issues_by_type(content: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for issue in content["findings"]:
        groups.setdefault((issue["kind"], issue["section"]), []).append(issue)
    for entry in content["kinds"]:
        yield entry, groups[entry["kind"], entry["section"]]


def _severity(entry: Mapping[str, Any]) -> str:
    return "accepted" if entry["accepted"] else entry["severity"]


def _summary(content: Mapping[str, Any]) -> str:
    """The number of issues of each severity, such as `1 error, 3 warnings`."""
    numbers: Counter[str] = Counter()
    for entry in content["kinds"]:
        numbers[_severity(entry)] += entry["number"]
    parts = [
        f"{numbers[name]} {name}{'s' * (numbers[name] != 1)}"
        for name in ("error", "warning", "note")
        if numbers[name]
    ]
    return ", ".join(parts) or ("no issues" + " except accepted ones" * bool(content["kinds"]))


def _counts_text(section: Mapping[str, Any]) -> str:
    return (
        f"{counted(section['images'], 'image', 'images')}, "
        f"{section['images_without_objects']} of them without objects; "
        f"{counted(section['objects'], 'object', 'objects')}, "
        f"{counted(section['crowds'], 'crowd', 'crowds')}"
    )


def _sizes_text(network_input: Mapping[str, Any]) -> str:
    """The input sizes at which boxes were assigned to levels."""
    sizes = [
        f"{min(height, width)}/{max(height, width)}" if keep_ratio else f"{height}x{width}, stretched"
        for height, width, keep_ratio in network_input["sizes"]
    ]
    text = f"resized to {sizes[0]}" if sizes else "at the original size"
    if len(sizes) > 1:
        text += f"; without a location at any of {len(sizes)} sizes"
    if network_input["transforms_not_considered"]:
        text += f"; not considered: {', '.join(network_input['transforms_not_considered'])}"
    return text


def _unassigned_text(table: Mapping[str, Any]) -> str:
    *_, covered, without = np.sum(table["boxes"], axis=0).tolist()
    return (
        f"{without} boxes have no location on any level; {covered} more lose all of theirs to smaller boxes"
    )


def _images_by_path(report: DataReport) -> dict[tuple[str, str], tuple]:
    return {
        (section.dataset.section, image.path): (image, look)
        for section in report.sections
        for image, look in zip(section.dataset.images, section.image_checks)
    }


def _thumbnail(issue: Mapping[str, Any], images: Mapping[tuple[str, str], tuple]) -> np.ndarray | None:
    """Draw the boxes of an image, the one of the issue in red; None if the image cannot be read."""
    image, look = images.get((issue["section"], issue["image"]), (None, None))
    if look is None or look.size is None:  # unreadable, or too large
        return None
    try:
        pixels = read_image(image.path, image.size)[:, :, ::-1]
    except ImageUnreadable:  # removed since the check
        return None
    small, scale = shrink(pixels, _THUMBNAIL_SIDE)
    canvas = cv2.copyMakeBorder(small, *[_MARGIN] * 4, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    limits = np.array([canvas.shape[1], canvas.shape[0]] * 2) - 1

    def draw(corners: Sequence[float], color: tuple[int, int, int], line: int) -> None:
        box = np.clip(np.array(corners) * scale + _MARGIN, 0, limits)
        x0, y0, x1, y1 = box.round().astype(int).tolist()
        cv2.rectangle(canvas, (x0, y0), (x1, y1), color, line)
        if line > 1 and max(abs(x1 - x0), abs(y1 - y0)) < _CIRCLE_RADIUS:
            center = ((x0 + x1) // 2, (y0 + y1) // 2)
            cv2.circle(canvas, center, _CIRCLE_RADIUS, color, 1, cv2.LINE_AA)

    for box in image.boxes:
        draw(box.corners, _OTHER_BOX, 1)
    if issue["box"] is not None:
        draw(issue["box"], _ISSUE_BOX, 2)
    return canvas
