"""Renders the HTML pages from the Jinja templates in `templates/`.

A page holds its styles, scripts, images and charts: it opens without a server and can be sent as one file.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ppfcos.console import printable
from ppfcos.environment import MissingLibraryError

JPEG_QUALITY = 75  # of the small images on a page


def render(template: str, **context: Any) -> str:
    """Render a template of `templates/`; strings of the context are escaped and made printable."""
    return _environment().get_template(template).render(context)


@functools.cache
def _environment() -> Any:
    try:
        import jinja2  # imported only where a page is written
    except ImportError as error:
        raise MissingLibraryError(f"writing a page needs Jinja2 ({error}): `pip install jinja2`") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters.update(
        short=short, percent=percent, thousands="{:,}".format, jpeg_url=jpeg_url, rectangle=rectangle
    )
    return environment


def _printable(value: Any) -> Any:
    """Escape control characters of strings; markup and numbers stay."""
    return value if type(value) is not str or value.isprintable() else printable(value)


def short(name: str, length: int = 26) -> str:
    """Cut a name to a number of characters."""
    return name if len(name) <= length else name[: length - 1] + "…"


def percent(value: float | None) -> str:
    """Format a fraction as papers do, such as 38.9; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f}"


def jpeg_url(image: np.ndarray) -> str:
    """Encode an image, [H, W, 3] uint8 BGR, as a data URL."""
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def rectangle(corners: Sequence[float]) -> str:
    """The attributes of an SVG rectangle with corners x0, y0, x1, y1."""
    x0, y0, x1, y1 = corners
    return f'x="{x0:.1f}" y="{y0:.1f}" width="{max(x1 - x0, 0):.1f}" height="{max(y1 - y0, 0):.1f}"'
