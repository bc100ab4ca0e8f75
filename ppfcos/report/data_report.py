"""What a check of data found, as text for a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ppfcos.console import printable
from ppfcos.data.checker.findings import DataReport
from ppfcos.data.checker.kinds import KINDS, TRAINING, Finding
from ppfcos.data.checker.responsibility import Geometry
from ppfcos.data.checker.rules import SIDE_BINS, SectionCheck

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
        if section.raw.section == TRAINING:
            lines += [*_level_table(section, report.geometry), ""]
    for kind, section, findings in report.by_kind():
        lines += _about(report, kind, section, findings, kind in accepted)
    lines.append(summary(report, accepted))
    return "\n".join(printable(line) for line in lines)


def summary(report: DataReport, accepted: Sequence[str] = ()) -> str:
    """One line: how many findings there are of what severity."""
    counted = [KINDS[finding.kind].severity for finding in report.findings if finding.kind not in accepted]
    if not counted:
        return "nothing was found" + (" but what is accepted" if report.findings else "")
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
                "section": section.raw.section,
                "severity": KINDS[kind].severity.value,
                "meaning": KINDS[kind].meaning,
                "outcome": KINDS[kind].outcome.value if section.raw.section == TRAINING else None,
                "consequence": report.consequence(kind, section),
                "fix": KINDS[kind].fix or None,
                "number": len(findings),
                "accepted": kind in accepted,
            }
            for kind, section, findings in report.by_kind()
        ],
        "findings": [finding._asdict() for finding in report.findings],
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
    raw, counts = section.raw, section.counts
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
    raw, counts = section.raw, section.counts
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
    report: DataReport, kind: str, section: SectionCheck, findings: Sequence[Finding], accepted: bool
) -> Iterator[str]:
    entry = KINDS[kind]
    mark = "accepted" if accepted else entry.severity.value
    yield f"{mark}: {kind}: {len(findings)} × {entry.meaning}, in {section.raw.section}"
    yield f"    {report.consequence(kind, section)}"
    if entry.fix:
        yield f"    --fix {entry.fix}"
    for finding in findings[:EXAMPLES]:
        yield f"      {finding.where}: {finding.detail}"
    if len(findings) > EXAMPLES:
        yield f"      and {len(findings) - EXAMPLES} more"
    yield ""
