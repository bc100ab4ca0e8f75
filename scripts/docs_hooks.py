"""MkDocs hook: turn links that leave docs/ into links to the repository's web page, or into plain text."""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")
log = logging.getLogger("mkdocs.hooks.repository_links")


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Replace links that leave docs/. A missing target is a warning, which fails `mkdocs build --strict`."""

    def replace(match: re.Match) -> str:
        text, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), target))
        if not (ROOT / path).exists():
            log.warning("%s links to %s, which does not exist", page.file.src_uri, target)
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path}{anchor or ''})"
        return text if "`" in text else f"`{path}`" if text in (path, target) else text

    return LINK.sub(replace, markdown)
