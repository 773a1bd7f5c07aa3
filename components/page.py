"""Reports as single HTML files that need nothing beside them."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .25rem .8rem; text-align: left; }
tr + tr { border-top: 1px solid #8886; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
img { max-width: 100%; background: white; } .big { font-size: 2.4rem; font-weight: 600; } .quiet { opacity: .7; }
.bar { display: inline-block; height: .8em; min-width: 1px; }
.ai { background: #c8553d; } .real { background: #2a6f97; }
.before { background: #8d99ae; } .after { background: #2a6f97; } .critical { color: #c8553d; font-weight: 600; }
"""


class Cell(str):
    """A piece of HTML that stands in a table as it is."""


def write(path: Path, title: str, parts: Sequence[str]) -> None:
    """Write a page.

    Args:
        path: the file.
        title: for the browser; text.
        parts: the body, as HTML.
    """
    path.write_text(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style>{''.join(parts)}</html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is words and whose others are figures."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td>{cell}</td>" if isinstance(cell, Cell) else f"<td{' class=n' if i else ''}>{escape(cell)}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def bars(*parts: tuple[str, float]) -> Cell:
    """Bars side by side: pairs of a class of `STYLE` and a length from 0 to 1."""
    return Cell(
        "".join(f'<span class="bar {name}" style="width:{12 * length:.2f}rem"></span>' for name, length in parts)
    )


def picture(data: bytes | Image.Image, says: str) -> str:
    """An image in the page: a PNG file's bytes, or pixels."""
    if isinstance(data, Image.Image):
        file = io.BytesIO()
        data.save(file, "PNG")
        data = file.getvalue()
    return f'<p><img alt="{escape(says)}" src="data:image/png;base64,{base64.b64encode(data).decode()}"></p>'
