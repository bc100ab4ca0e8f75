"""What all pages have in common: one HTML file with its styles, pictures and charts in it.

A page reaches for nothing outside itself, so that it can be sent, and opened without a server.
"""

from __future__ import annotations

import base64
from html import escape

import cv2
import numpy as np

from ppfcos.console import printable

_JPEG_QUALITY = 75  # of small pictures, of which a page has many

# Colours of both kinds of screen; whatever a page adds takes its colours from here.
_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d2433; --soft: #5a6577; --line: #dde2ea;
  --card: #f5f7fa; --accent: #2563eb; --error: #b00020; --warning: #9a5b00; --note: #446; }
@media (prefers-color-scheme: dark) { :root { --paper: #12161d; --ink: #e4e8ef; --soft: #9ba6b7;
  --line: #2d3543; --card: #1a202a; --accent: #74a4ff; --error: #ff8095; --warning: #f0b35a;
  --note: #a9b4d6; } }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
body { color: var(--ink); background: var(--paper); } a { color: var(--accent); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .6rem 0; }
th, td { padding: .2rem .7rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
code, .where { font-family: ui-monospace, monospace; font-size: .86em; overflow-wrap: anywhere; }
figure { margin: 0; } figcaption { font-size: .8rem; overflow-wrap: anywhere; }
svg text { font: 11px system-ui, sans-serif; fill: var(--ink); }
"""


def page(title: str, body: str, style: str = "", script: str = "") -> str:
    """A whole page.

    Args:
        title: of the browser's tab; any text.
        body: HTML.
        style: CSS of this page.
        script: JavaScript, run once all of the body is there.

    Returns:
        HTML with everything in it.
    """
    running = f"<script>{script}</script>" if script else ""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{escaped(title)}</title><style>{_STYLE}{style}</style></head>\n"
        f"<body>\n{body}\n{running}</body></html>\n"
    )


def escaped(content: object) -> str:
    """Text from the data, which may hold anything, as HTML.

    Args:
        content: of any kind.

    Returns:
        What stands for its characters, in a tag or in an attribute between quotes.
    """
    return escape(printable(str(content)))


def short(name: str, most: int = 26) -> str:
    """A name for a place that is narrow.

    Args:
        name: any.
        most: letters that it may have.

    Returns:
        The name or its beginning.
    """
    return name if len(name) <= most else name[: most - 1] + "…"


def picture_address(image_bgr: np.ndarray) -> str:
    """A picture that is a part of the page.

    Args:
        image_bgr: [H, W, 3] uint8, blue first; as small as it is shown.

    Returns:
        The address to name in the tag: the picture itself, as JPEG.
    """
    data = cv2.imencode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
