"""What a check of data found, as one HTML file that has its styles, pictures and charts in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from ppfcos.console import printable
from ppfcos.data.check.check import DataReport
from ppfcos.data.check.levels import Geometry
from ppfcos.data.issues import ISSUE_TYPES, TRAINING, Issue
from ppfcos.data.check.rules import SIDE_BINS, SectionCheck
from ppfcos.data.images import ImageUnreadable, read_image
from ppfcos.visualize.page import escaped, page, picture_address, short

EXAMPLES = 3  # of each kind in the text; the JSON has all
_JSON_VERSION = 1


def text_report(report: DataReport, accepted: Sequence[str] = ()) -> str:
    """The findings by kind with their number, a few examples, and what is done about them.

    Args:
        report: Of the check.
        accepted: Kinds that the user knows of.

    Returns:
        Lines without control characters, whatever file names there are.
    """
    lines = []
    for section in report.sections:
        lines += [*_overview(section), ""]
        if section.dataset.section == TRAINING:
            lines += [*_level_table(section, report.geometry), ""]
    for kind, section, findings in report.by_type():
        lines += _about(report, kind, section, findings, kind in accepted)
    lines.append(summary(report, accepted))
    return "\n".join(printable(line) for line in lines)


def summary(report: DataReport, accepted: Sequence[str] = ()) -> str:
    """One line: how many findings there are of what severity."""
    counted = [ISSUE_TYPES[finding.kind].severity for finding in report.issues if finding.kind not in accepted]
    if not counted:
        return "nothing was found" + (" but what is accepted" if report.issues else "")
    numbers = {severity.value: counted.count(severity) for severity in dict.fromkeys(counted)}
    return ", ".join(
        f"{numbers[name]} {name if numbers[name] == 1 else name + 's'}"
        for name in ("error", "warning", "note")
        if name in numbers
    )


def json_report(report: DataReport, accepted: Sequence[str] = ()) -> dict[str, Any]:
    """Everything that was found.

    Args:
        report: Of the check.
        accepted: Kinds that the user knows of.

    Returns:
        `sections` with counts, `kinds` with their meaning and consequences, and `findings`.
    """
    return {
        "version": _JSON_VERSION,
        "sections": [_section_entry(section, report.geometry) for section in report.sections],
        "input": {
            "sizes": [[*resize.target, resize.keep_ratio] for resize in report.geometry.resizes],
            "strides": list(report.geometry.strides),
            "size_ranges": list(report.geometry.size_ranges),
            "center_sampling_radius": report.geometry.radius,
            "transforms_not_considered": list(report.geometry.left_out),
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


def level_names(geometry: Geometry) -> list[str]:
    """A name for every column of `Counts.levels`."""
    return [*(f"stride {stride}" for stride in geometry.strides), "covered", "no location"]


def bin_names() -> list[str]:
    """A name for every row of `Counts.levels`."""
    ends = ["0", *(str(side) for side in SIDE_BINS)]
    return [f"{low}–{high}" for low, high in zip(ends, ends[1:])] + [f"over {ends[-1]}"]


def sizes_text(geometry: Geometry) -> str:
    """At which sizes the boxes were looked at, in a few words."""
    sizes = [
        f"{min(r.target)}/{max(r.target)}" if r.keep_ratio else f"{r.target[0]}x{r.target[1]}, stretched"
        for r in geometry.resizes
    ]
    text = "at their own size" if not sizes else f"resized to {sizes[0]}"
    if len(sizes) > 1:
        text += f"; without a location at any of {len(sizes)} sizes"
    if geometry.left_out:
        text += f"; not considered: {', '.join(geometry.left_out)}"
    return text


def lost_text(section: SectionCheck) -> str:
    """How many boxes no location is responsible for."""
    *_, covered, without = section.counts.levels.sum(axis=0).tolist()
    return (
        f"{without} boxes have no location on any level; {covered} more lose all of theirs to smaller boxes"
    )


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
        entry["box_sizes"] = {
            "longer_side": bin_names(),
            "columns": level_names(geometry),
            "boxes": counts.levels.tolist(),
        }
    return entry


def _overview(section: SectionCheck) -> list[str]:
    raw, counts = section.dataset, section.counts
    named = sorted(
        zip((category.name for category in raw.categories), counts.per_class), key=lambda pair: -pair[1]
    )
    classes = ", ".join(f"{name} {objects}" for name, objects in named[:10])
    if len(named) > 10:
        classes += f", and {len(named) - 10} more"
    return [
        f"{raw.section}: {raw.source}",
        f"  {counts.images} images, {counts.empty} of them without objects; {counts.objects} objects, "
        f"{counts.crowds} crowds; {len(named)} classes",
        f"  objects of each class: {classes}",
    ]


def _level_table(section: SectionCheck, geometry: Geometry) -> list[str]:
    columns = level_names(geometry)
    widths = [max(len(name), 7) for name in columns]
    rows = [f"  boxes by longer side in pixels and by level, {sizes_text(geometry)}"]
    rows.append("    " + " " * 10 + "  ".join(f"{name:>{w}}" for name, w in zip(columns, widths)))
    for name, numbers in zip(bin_names(), section.counts.levels.tolist()):
        if any(numbers):
            cells = "  ".join(f"{number or '·':>{w}}" for number, w in zip(numbers, widths))
            rows.append(f"    {name:<10}{cells}")
    return [*rows, f"  {lost_text(section)}"]


def _about(
    report: DataReport, kind: str, section: SectionCheck, findings: Sequence[Issue], accepted: bool
) -> Iterator[str]:
    entry = ISSUE_TYPES[kind]
    mark = "accepted" if accepted else entry.severity.value
    yield f"{mark}: {kind}: {len(findings)} × {entry.meaning}, in {section.dataset.section}"
    yield f"    {report.consequence(kind, section)}"
    if entry.fix:
        yield f"    --fix {entry.fix}"
    for finding in findings[:EXAMPLES]:
        yield f"      {finding.where}: {finding.detail}"
    if len(findings) > EXAMPLES:
        yield f"      and {len(findings) - EXAMPLES} more"
    yield ""


THUMBNAILS_OF_A_KIND, THUMBNAILS = 6, 120
LINES_OF_A_KIND = 100
_THUMBNAIL_SIDE, _MARGIN = 260, 14  # pixels; the margin shows boxes that reach beyond the picture
_RING_RADIUS = 9  # pixels
_OTHER_BOX, _THE_BOX = (70, 170, 70), (60, 40, 230)  # blue first
_LEVEL_COLOURS = ("#1b6ca8", "#2a9d8f", "#8ab17d", "#e9c46a", "#f4a261", "#7b5ea7", "#9c9c9c")
_LOST_COLOURS = ("#e76f51", "#b00020")  # covered, no location

_STYLE = """
.error { color: var(--error); } .warning { color: var(--warning); } .note, .accepted { color: var(--note); }
section.kind { color: var(--ink); border-left: 4px solid var(--line); padding: .1rem 1rem .4rem; }
section.kind { margin: 1.2rem 0; }
section.error { border-color: var(--error); } section.warning { border-color: var(--warning); }
.consequence { font-weight: 600; }
.pictures { display: flex; flex-wrap: wrap; gap: .8rem; } figure { width: 18rem; }
figure img { max-width: 100%; display: block; }
.gone { width: 16rem; height: 6rem; background: var(--card); display: grid; place-items: center; }
.gone { color: var(--soft); } ul { padding-left: 1.2rem; }
"""


def html_page(report: DataReport, title: str, accepted: Sequence[str] = ()) -> str:
    """The whole page.

    Args:
        report: Of the check.
        title: What was checked.
        accepted: Kinds that the user knows of.

    Returns:
        HTML with everything in it. Of the pictures a bounded number is shown, at a bounded size.
    """
    pictures = _Thumbnails(report)
    parts = [
        f"<h1>Data of {escaped(title)}: {escaped(summary(report, accepted))}</h1>",
        _kinds_table(report, accepted),
        *(_section(section, report) for section in report.sections),
        "<h2>Findings</h2>",
        *(
            _kind(report, kind, section, findings, pictures, kind in accepted)
            for kind, section, findings in report.by_type()
        ),
    ]
    return page(title, "\n".join(parts), _STYLE)


def _anchor(kind: str, section: SectionCheck) -> str:
    return f"{kind}-{section.dataset.section}"


def _kinds_table(report: DataReport, accepted: Sequence[str]) -> str:
    rows = []
    for kind, section, findings in report.by_type():
        mark = "accepted" if kind in accepted else ISSUE_TYPES[kind].severity.value
        rows.append(
            f"<tr><td class='{mark}'>{mark}</td><td class='number'>{len(findings)}</td>"
            f"<td><a href='#{_anchor(kind, section)}'>{kind}</a></td><td>{escaped(section.dataset.section)}</td>"
            f"<td>{escaped(report.consequence(kind, section))}</td></tr>"
        )
    if not rows:
        return "<p>Nothing was found.</p>"
    head = "<tr><th></th><th class='number'>number</th><th>kind</th><th>in</th><th>what is done</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _section(section: SectionCheck, report: DataReport) -> str:
    raw, counts = section.dataset, section.counts
    classes = [(category.name, [objects]) for category, objects in zip(raw.categories, counts.per_class)]
    parts = [
        f"<h2>{escaped(raw.section)}</h2><p><code>{escaped(raw.source)}</code><br>{counts.images} images, "
        f"{counts.empty} of them without objects; {counts.objects} objects, {counts.crowds} crowds</p>",
        _bars("Objects of each class", classes, [""]),
    ]
    if raw.section == TRAINING:
        rows = list(zip(bin_names(), counts.levels.tolist()))
        title = f"Boxes by longer side in pixels and by level, {sizes_text(report.geometry)}"
        parts.append(_bars(title, rows, level_names(report.geometry)))
        parts.append(f"<p>{escaped(lost_text(section))}</p>")
    return "".join(parts)


def _bars(title: str, rows: Sequence[tuple[str, Sequence[int]]], names: Sequence[str]) -> str:
    """A bar chart, one bar a row, in as many parts as there are names; with a legend if there are several."""
    left, width, step = 190, 560, 20
    longest = max((sum(numbers) for _, numbers in rows), default=0) or 1
    colours = _colours(len(names))
    shapes = []
    for index, (name, numbers) in enumerate(rows):
        x, y = float(left), index * step
        shapes.append(f"<text x='{left - 8}' y='{y + 14}' text-anchor='end'>{escaped(short(name))}</text>")
        for number, colour, part in zip(numbers, colours, names):
            extent = number / longest * width
            hint = f"<title>{escaped(name)} {escaped(part)}: {number}</title>"
            if number:
                shapes.append(
                    f"<rect x='{x:.1f}' y='{y + 3}' width='{max(extent, 1):.1f}' height='{step - 6}' "
                    f"fill='{colour}'>{hint}</rect>"
                )
            x += extent
        shapes.append(f"<text x='{x + 6:.1f}' y='{y + 14}'>{sum(numbers)}</text>")
    legend = " ".join(
        f"<span style='color:{colour}'>■</span> {escaped(name)}"
        for name, colour in zip(names, colours)
        if name
    )
    size = f"width='{left + width + 80}' height='{len(rows) * step + 4}'"
    return f"<h3>{escaped(title)}</h3><p>{legend}</p><svg {size} role='img'>{''.join(shapes)}</svg>"


def _colours(parts: int) -> list[str]:
    if parts == 1:
        return [_LEVEL_COLOURS[0]]
    levels = parts - len(_LOST_COLOURS)
    return [*(_LEVEL_COLOURS[i % len(_LEVEL_COLOURS)] for i in range(levels)), *_LOST_COLOURS]


def _kind(
    report: DataReport,
    kind: str,
    section: SectionCheck,
    findings: Sequence[Issue],
    pictures: _Thumbnails,
    accepted: bool,
) -> str:
    entry = ISSUE_TYPES[kind]
    mark = "accepted" if accepted else entry.severity.value
    shown = "".join(pictures.of(finding) for finding in _one_an_image(findings)[:THUMBNAILS_OF_A_KIND])
    fix = f"<p>--fix {escaped(entry.fix)}.</p>" if entry.fix else ""
    lines = "".join(
        f"<li><span class='where'>{escaped(finding.where)}</span>: {escaped(finding.detail)}</li>"
        for finding in findings[:LINES_OF_A_KIND]
    )
    rest = len(findings) - LINES_OF_A_KIND
    more = f"<p>and {rest} more, which the JSON report names</p>" if rest > 0 else ""
    return (
        f"<section class='kind {mark}' id='{_anchor(kind, section)}'>"
        f"<h3>{len(findings)} × {escaped(entry.meaning)} "
        f"<small>({kind}, {escaped(section.dataset.section)})</small></h3>"
        f"<p class='consequence'>{escaped(report.consequence(kind, section))}.</p>{fix}"
        f"<div class='pictures'>{shown}</div>"
        f"<details{'' if len(findings) > 10 else ' open'}><summary>the places</summary><ul>{lines}</ul>{more}"
        "</details></section>"
    )


def _one_an_image(findings: Sequence[Issue]) -> list[Issue]:
    return list({finding.image: finding for finding in reversed(findings) if finding.image}.values())[::-1]


class _Thumbnails:
    """Small pictures with all boxes of an image, and the one that a finding is about in red.

    Args:
        report: Of the check.
    """

    def __init__(self, report: DataReport):
        self._images = {
            (section.dataset.section, image.path): (image, look)
            for section in report.sections
            for image, look in zip(section.dataset.images, section.image_checks)
        }
        self._left = THUMBNAILS

    def of(self, finding: Issue) -> str:
        """A figure for a finding, or nothing if there have been enough."""
        if not self._left:
            return ""
        self._left -= 1
        picture = self._draw(finding)
        if picture is None:
            shown = "<div class='gone'>no picture to show</div>"
        else:
            shown = f"<img alt='' src='{picture_address(picture)}'>"
        return (
            f"<figure>{shown}<figcaption><span class='where'>{escaped(finding.where)}</span><br>"
            f"{escaped(finding.detail)}</figcaption></figure>"
        )

    def _draw(self, finding: Issue) -> np.ndarray | None:
        image, look = self._images.get((finding.section, finding.image), (None, None))
        if look is None or look.size is None:  # nobody could read it, or it is too large to be read again
            return None
        try:
            picture = read_image(image.path, image.size)[:, :, ::-1]
        except ImageUnreadable:  # it was there a moment ago
            return None
        height, width = picture.shape[:2]
        factor = min(_THUMBNAIL_SIDE / max(height, width), 1.0)
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        canvas = cv2.copyMakeBorder(small, *[_MARGIN] * 4, cv2.BORDER_CONSTANT, value=(255, 255, 255))
        for box in image.boxes:
            _outline(canvas, box.corners, factor, _OTHER_BOX, 1)
        if finding.box is not None:
            _outline(canvas, finding.box, factor, _THE_BOX, 2)
            _ring_if_small(canvas, finding.box, factor)
        return canvas


def _outline(
    canvas: np.ndarray, corners: Sequence[float], factor: float, colour: tuple[int, int, int], line: int
) -> None:
    x0, y0, x1, y1 = _on_canvas(canvas, corners, factor)
    cv2.rectangle(canvas, (x0, y0), (x1, y1), colour, line)


def _ring_if_small(canvas: np.ndarray, corners: Sequence[float], factor: float) -> None:
    """Draws a circle around a box that could be overlooked."""
    x0, y0, x1, y1 = _on_canvas(canvas, corners, factor)
    if max(abs(x1 - x0), abs(y1 - y0)) < _RING_RADIUS:
        cv2.circle(canvas, ((x0 + x1) // 2, (y0 + y1) // 2), _RING_RADIUS, _THE_BOX, 1, cv2.LINE_AA)


def _on_canvas(canvas: np.ndarray, corners: Sequence[float], factor: float) -> list[int]:
    """A box's corners on a thumbnail; one far outside ends at its edge."""
    limits = np.array([canvas.shape[1], canvas.shape[0]] * 2) - 1
    return np.clip(np.array(corners) * factor + _MARGIN, 0, limits).round().astype(int).tolist()
