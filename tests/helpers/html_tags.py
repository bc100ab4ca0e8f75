"""An HTML page as its tags and its text."""

from __future__ import annotations

import html.parser


class Tags(html.parser.HTMLParser):
    """The tags of a page with their attributes, and the text between them."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data
