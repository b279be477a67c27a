"""Read the page of a data set report: tables, tags, text and pictures."""

import base64
import io
from html.parser import HTMLParser

from PIL import Image


class Page(HTMLParser):
    """Reads the tables, tags and text of a page."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tables, self.tags, self.text = [], [], []
        self._cell = None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append({"caption": "", "class": dict(attributes).get("class"), "rows": []})
        elif tag == "tr":
            self.tables[-1]["rows"].append([])
        elif tag in ("td", "th"):
            self.tables[-1]["rows"][-1].append("")
            self._cell = tag
        elif tag == "caption":
            self._cell = tag

    def handle_endtag(self, tag):
        if tag in ("td", "th", "caption"):
            self._cell = None

    def handle_data(self, data):
        self.text.append(data)
        if self._cell == "caption":
            self.tables[-1]["caption"] += data
        elif self._cell:
            self.tables[-1]["rows"][-1][-1] += data

    def table(self, caption):
        (found,) = [table for table in self.tables if table["caption"] == caption]
        return found["rows"]


def number(text):
    return int(text.replace(",", "").replace("\N{MINUS SIGN}", "-").replace("+", ""))


def clips_of(record):
    return record.scan["clips"] if record.scan else []


def shown_red(page, alt):
    """Decode the picture with that alternative text and return its colour's red."""
    (image,) = {a["src"] for tag, a in Page(page).tags if tag == "img" and a["alt"] == alt}
    content = base64.b64decode(image.removeprefix("data:image/webp;base64,"))
    with Image.open(io.BytesIO(content)) as opened:
        return opened.convert("RGB").getpixel((20, 15))[0]
