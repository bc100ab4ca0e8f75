"""What a check of data found, as one HTML file that has its styles, pictures and charts in it."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ppfcos.data.checker.findings import DataReport
from ppfcos.data.checker.kinds import KINDS, TRAINING, Finding
from ppfcos.data.checker.rules import SectionCheck
from ppfcos.data.images import ImageUnreadable, read_image
from ppfcos.report.data_report import bin_names, level_names, lost_text, sizes_text, summary
from ppfcos.report.page import escaped, page, picture_address, short

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
            for kind, section, findings in report.by_kind()
        ),
    ]
    return page(title, "\n".join(parts), _STYLE)


def _anchor(kind: str, section: SectionCheck) -> str:
    return f"{kind}-{section.raw.section}"


def _kinds_table(report: DataReport, accepted: Sequence[str]) -> str:
    rows = []
    for kind, section, findings in report.by_kind():
        mark = "accepted" if kind in accepted else KINDS[kind].severity.value
        rows.append(
            f"<tr><td class='{mark}'>{mark}</td><td class='number'>{len(findings)}</td>"
            f"<td><a href='#{_anchor(kind, section)}'>{kind}</a></td><td>{escaped(section.raw.section)}</td>"
            f"<td>{escaped(report.consequence(kind, section))}</td></tr>"
        )
    if not rows:
        return "<p>Nothing was found.</p>"
    head = "<tr><th></th><th class='number'>number</th><th>kind</th><th>in</th><th>what is done</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _section(section: SectionCheck, report: DataReport) -> str:
    raw, counts = section.raw, section.counts
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
    findings: Sequence[Finding],
    pictures: _Thumbnails,
    accepted: bool,
) -> str:
    entry = KINDS[kind]
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
        f"<small>({kind}, {escaped(section.raw.section)})</small></h3>"
        f"<p class='consequence'>{escaped(report.consequence(kind, section))}.</p>{fix}"
        f"<div class='pictures'>{shown}</div>"
        f"<details{'' if len(findings) > 10 else ' open'}><summary>the places</summary><ul>{lines}</ul>{more}"
        "</details></section>"
    )


def _one_an_image(findings: Sequence[Finding]) -> list[Finding]:
    return list({finding.image: finding for finding in reversed(findings) if finding.image}.values())[::-1]


class _Thumbnails:
    """Small pictures with all boxes of an image, and the one that a finding is about in red.

    Args:
        report: Of the check.
    """

    def __init__(self, report: DataReport):
        self._images = {
            (section.raw.section, image.path): (image, look)
            for section in report.sections
            for image, look in zip(section.raw.images, section.looks)
        }
        self._left = THUMBNAILS

    def of(self, finding: Finding) -> str:
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

    def _draw(self, finding: Finding) -> np.ndarray | None:
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
