"""Write the report of an evaluation: a page, and a file with its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppfcos.errors import DataError
from ppfcos.files import replacing
from ppfcos.json_files import JSONError, read_json, to_json
from ppfcos.report.comparison_page import comparison_page
from ppfcos.report.error_kinds import find_errors
from ppfcos.report.evaluation_figures import REPORT, VERSION, Figures, evaluation_figures
from ppfcos.report.evaluation_page import evaluation_page
from ppfcos.report.gallery import Pictures, case_entry, draw_cases, worst_cases
from ppfcos.report.matching import image_order, match

JSON_FILE, PAGE_FILE = "report.json", "report.html"
COMPARISON_FILE = "comparison.html"
# Names of files need not be text; what UTF-8 cannot write is written as JSON would have it.
_TEXT = {"encoding": "utf-8", "errors": "backslashreplace"}


def write_report(
    folder: Path | str,
    title: str,
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    figures: Figures,
    pictures: Pictures,
) -> Path:
    """Say all that can be said of a run.

    Args:
        folder: for JSON_FILE and PAGE_FILE; made where it is missing.
        title: of the run.
        ground_truth: COCO's annotation file.
        detections: COCO's result file.
        figures: of both.
        pictures: the images, for the worst cases.

    Returns:
        The page's path.

    Raises:
        OutputError: it cannot be written.
    """
    matching = match(ground_truth, detections)
    errors = find_errors(matching)
    images = image_order(ground_truth)
    names = [str(category["name"]) for category in ground_truth["categories"]]
    cases = worst_cases(matching, errors)
    content = evaluation_figures(title, ground_truth, figures, matching, errors)
    content["gallery"] = [
        case_entry(case, matching, names, pictures.name(images[case.image])) for case in cases
    ]
    drawings = draw_cases(cases, matching, images, pictures)
    text = evaluation_page(content, drawings, figures.table())
    with replacing(Path(folder) / JSON_FILE) as unfinished:
        unfinished.write_text(to_json(content, allow_nan=False), encoding="utf-8")
    with replacing(Path(folder) / PAGE_FILE) as unfinished:
        unfinished.write_text(text, **_TEXT)
    return Path(folder) / PAGE_FILE


def write_comparison(first: Path | str, second: Path | str, folder: Path | str) -> Path:
    """Put two reports side by side.

    Args:
        first: folder of a report.
        second: folder of another.
        folder: for COMPARISON_FILE; made where it is missing.

    Returns:
        The page's path.

    Raises:
        DataError: one of the folders has no report.
        OutputError: it cannot be written.
    """
    text = comparison_page(read_figures(first), read_figures(second))
    path = Path(folder) / COMPARISON_FILE
    with replacing(path) as unfinished:
        unfinished.write_text(text, **_TEXT)
    return path


def read_figures(folder: Path | str) -> dict[str, Any]:
    """Read the figures of a report.

    Args:
        folder: of `write_report`.

    Returns:
        What was written.

    Raises:
        DataError: they are missing, or something else is there.
    """
    path = Path(folder) / JSON_FILE
    try:
        content = read_json(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}): write it first, with --report {folder}"
        ) from error
    except JSONError as error:
        raise DataError(f"{path} is no JSON ({error}): write it anew, with --report {folder}") from error
    if not isinstance(content, dict) or content.get("report") != REPORT:
        raise DataError(f"{path} is no report of an evaluation: write one with --report {folder}")
    if content.get("version") != VERSION:
        raise DataError(
            f"{path} is of version {content.get('version')}, not {VERSION}: write it anew, "
            f"with --report {folder}"
        )
    return content
