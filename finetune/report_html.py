"""Pieces of HTML that a report is made of; what is text is escaped here."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterable, Sequence
from html import escape

from matplotlib.figure import Figure

from finetune.report_pictures import Picture

_DPI = 140  # of pictures: sharp in print, and still small


def section(title: str, parts: Sequence[str]) -> str:
    """Put parts under a heading; nothing at all if all parts are empty."""
    inner = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{inner}\n</section>" if inner else ""


def figure(picture: Picture) -> str:
    """Put a picture into the page itself, as PNG."""
    width = round(96 * picture.figure.get_figwidth())
    data = base64.b64encode(_png(picture.figure)).decode()
    caption = f"<b>{escape(picture.title)}.</b> {escape(picture.caption)}"
    image = f'<img alt="{escape(picture.title)}" src="data:image/png;base64,{data}">'
    return (
        f'<figure style="width:{width}px">\n<figcaption>{caption}</figcaption>\n{image}\n</figure>'
    )


def _png(drawn: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that matplotlib's font lacks is boxes there, and right in the text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        drawn.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> str:
    """Make a table.

    Parameters
    ----------
    header
        Text; none, if all of it is empty.
    rows
        Cells that are HTML already.
    text_columns
        So many columns from the first are words, on the left; the others are numbers.
    """

    def row(tag: str, cells: Sequence[str]) -> str:
        kinds = (' class="text"' if i < text_columns else "" for i in range(len(cells)))
        inner = (f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(inner)}</tr>"

    head = f"<thead>{row('th', [escape(cell) for cell in header])}</thead>" if any(header) else ""
    body = "\n".join(row("td", cells) for cells in rows)
    return f'<div class="wide"><table>{head}<tbody>\n{body}\n</tbody></table></div>'


def details(title: str, inner: str) -> str:
    """Hide a part until it is asked for, or printed."""
    return f"<details><summary>{escape(title)}</summary>{inner}</details>"


def bullets(sentences: Iterable[str]) -> str:
    """List sentences; empty ones are left out."""
    items = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in sentences if sentence)
    return f"<ul>\n{items}\n</ul>"
