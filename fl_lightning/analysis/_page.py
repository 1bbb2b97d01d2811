"""One HTML page that needs nothing else: pictures lie in it, and its policy forbids the browser to ask for more."""

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

POISONED, CLEAN, OTHER = "#c8321e", "#1f6fb4", "#6b7280"
"""The colours of the two models in every picture, and of anything else."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 62em; margin: 0 auto; padding: 0 1em 4em }
h1 { font-size: 1.5em; margin-bottom: .2em } h2 { margin-top: 2.2em; border-bottom: 1px solid #ddd }
p { max-width: 48em } img { max-width: 100%; height: auto } figure { margin: 1em 0 } figcaption { color: #555 }
table { border-collapse: collapse; margin: 1em 0 }
td, th { padding: .25em .8em; border-bottom: 1px solid #e5e5e5; text-align: right }
td:first-child, th:first-child { text-align: left } th { font-weight: 600; vertical-align: bottom }
.scroll { overflow-x: auto } .warning { background: #c8321e; color: white; padding: .7em 1em; font-weight: 600 }
nav a { margin-right: 1.2em; white-space: nowrap } code { background: #f2f2f2; padding: 0 .2em }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        title: its heading.
        parts: pieces of HTML, made by `text`, `table`, `picture`.
    """

    title: str
    parts: tuple[str, ...]

    @property
    def anchor(self) -> str:
        """Where the table of contents points."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


def text(words: str, style: str = "") -> str:
    """A paragraph; `words` in back quotes are code."""
    body = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(words))
    return f'<p class="{style}">{body}</p>' if style else f"<p>{body}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; floats are shown with four digits, None and NaN as nothing."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def picture(figure: Figure, caption: str) -> str:
    """A picture as part of the page."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    source = base64.b64encode(data.getvalue()).decode()
    words = html.escape(caption)
    return f'<figure><img src="data:image/png;base64,{source}" alt="{words}"><figcaption>{words}</figcaption></figure>'


def page(title: str, sections: Sequence[Section]) -> str:
    """The whole page, with a table of contents."""
    links = "".join(f'<a href="#{one.anchor}">{html.escape(one.title)}</a> ' for one in sections)
    body = "".join(
        f'<section id="{one.anchor}"><h2>{html.escape(one.title)}</h2>{"".join(one.parts)}</section>\n'
        for one in sections
    )
    name = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f'<meta name="viewport" content="width=device-width"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<style>{STYLE}</style></head>\n<body><h1>{name}</h1><nav>{links}</nav>\n{body}</body></html>\n"
    )
