"""One HTML page that needs nothing else: pictures lie in it, and its policy forbids the browser to ask for more."""

import base64
import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import matplotlib
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

POISONED, CLEAN, OTHER = "#c8321e", "#1f6fb4", "#6b7280"
"""The colours of the two models in every picture, and of anything else."""

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --line: #ddd; --soft: #f2f2f2; --faint: #555; --link: #1f5fa8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #16181c; --line: #3a3f47; --soft: #262a31; --faint: #a9b0ba; --link: #7db4f0 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62em; margin: 0 auto;
  padding: 0 1em 4em }
h1 { font-size: 1.5em; margin-bottom: .2em } h2 { margin-top: 2.2em; border-bottom: 1px solid var(--line) }
p { max-width: 48em } .lead { font-size: 1.12em } figure { margin: 1em 0 } figcaption { color: var(--faint) }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px }
table { border-collapse: collapse; margin: 1em 0 } a { color: var(--link) }
td, th { padding: .25em .8em; border-bottom: 1px solid var(--line); text-align: right }
td:first-child, th:first-child, .words { text-align: left } th { font-weight: 600; vertical-align: bottom }
.scroll { overflow-x: auto } .warning { background: #c8321e; color: white; padding: .7em 1em; font-weight: 600 }
nav a { margin-right: 1.2em; white-space: nowrap } code { background: var(--soft); padding: 0 .2em } summary { cursor: pointer }
.widget { background: #fff; border-radius: 4px }
@media print {
  :root { color-scheme: light; --ink: #000; --paper: #fff; --line: #bbb; --soft: #eee; --faint: #333; --link: #000 }
  body { max-width: none; font-size: 10pt } nav { display: none } h2 { break-after: avoid }
  figure, tr, .warning { break-inside: avoid } .warning { print-color-adjust: exact; -webkit-print-color-adjust: exact } }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""No script, and nothing from elsewhere."""

SCRIPTED = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""For pages with pictures that answer to the mouse: the scripts that lie in them, and nothing from elsewhere."""

FIGURE = 40
"""Characters from which on a cell holds a sentence; its column begins at the left."""

TEMPLATES = {
    "page": """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}"><style>{{ style }}</style></head>
<body><h1>{{ title }}</h1><nav>{% for one in sections %}<a href="#{{ one.anchor }}">{{ one.title }}</a> {% endfor %}</nav>
{% for one in sections %}<section id="{{ one.anchor }}"><h2>{{ one.title }}</h2>{{ one.body }}</section>
{% endfor %}</body></html>
""",
    "text": '<p{% if style %} class="{{ style }}"{% endif %}>{{ words }}</p>',
    "table": '<div class="scroll"><table><tr>{% for cell in head %}'
    "<th{{ styles[loop.index0] }}>{{ cell }}</th>{% endfor %}</tr>{% for row in rows %}"
    "<tr>{% for cell in row %}<td{{ styles[loop.index0] }}>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table></div>",
    "folded": "<details><summary>{{ summary }}</summary>{{ inner }}</details>",
    "picture": '<figure><img src="data:image/svg+xml;base64,{{ source }}" alt="{{ caption }}">'
    "<figcaption>{{ caption }}</figcaption></figure>",
    "widget": '<div class="widget">{{ html }}</div>',
}
ENVIRONMENT = Environment(autoescape=True, undefined=StrictUndefined)
MADE = {name: ENVIRONMENT.from_string(source) for name, source in TEMPLATES.items()}


class Piece(Markup):
    """A piece of HTML, with the file that it can also be had as.

    Attributes:
        ending: `csv`, `svg`, or empty.
        content: of the file.
    """

    ending: str = ""
    content: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        title: its heading.
        parts: pieces of HTML, made by `text`, `table`, `picture`; a section without any is left out.
    """

    title: str
    parts: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        """Where the table of contents points."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")

    @property
    def body(self) -> Markup:
        """Its parts, one after the other."""
        return Markup("").join(self.parts)

    def files(self) -> dict[str, str]:
        """Its tables as CSV and its pictures as SVG: name -> content."""
        made = [part for part in self.parts if isinstance(part, Piece) and part.ending]
        return {f"{self.anchor}-{number}.{part.ending}": part.content for number, part in enumerate(made, 1)}


def _piece(template: str, **values: object) -> Piece:
    return Piece(MADE[template].render(**values))


def text(words: str, style: str = "") -> Piece:
    """A paragraph; `words` in back quotes are code, what is between two stars is bold, and `[words](address)` is a link."""
    body = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(words)))
    body = re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", body)
    body = re.sub(r"\[([^\]]+)\]\(((?:https?://|#)[^)\s\"]+)\)", r'<a href="\2">\1</a>', body)
    return _piece("text", words=Markup(body), style=style)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Piece:
    """A table; floats are shown with four digits, None as a dash, and NaN as nothing. Also to be had as CSV."""
    rows = [list(row) for row in rows]
    columns = ([row[at] for row in rows] for at in range(len(head)))
    wordy = [any(isinstance(cell, str) and len(cell) > FIGURE for cell in column) for column in columns]
    styles = [Markup(' class="words"') if one else "" for one in wordy]
    made = _piece("table", head=head, styles=styles, rows=[[_cell(cell) for cell in row] for row in rows])
    written = io.StringIO()
    csv.writer(written).writerows([list(head), *([_plain(cell) for cell in row] for row in rows)])
    made.ending, made.content = "csv", written.getvalue()
    return made


def folded(summary: str, inner: Piece) -> Piece:
    """A piece that is shown when a reader asks for it; no script is needed."""
    made = _piece("folded", summary=summary, inner=inner)
    made.ending, made.content = inner.ending, inner.content
    return made


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def _plain(value: object) -> object:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def picture(figure: Figure, caption: str) -> Piece:
    """A picture as part of the page, drawn in lines rather than in dots. Also to be had as SVG."""
    data = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "fl_lightning"}):
        figure.savefig(data, format="svg", metadata={"Date": None})
    made = _piece("picture", source=base64.b64encode(data.getvalue().encode()).decode(), caption=caption)
    made.ending, made.content = "svg", data.getvalue()
    return made


def widget(html: str) -> Piece:
    """A picture that answers to the mouse, with its script: made by a library, never from what a stranger has written."""
    return _piece("widget", html=Markup(html))


def page(title: str, sections: Sequence[Section], policy: str = POLICY) -> str:
    """The whole page, with a table of contents; sections without content are left out."""
    shown = [one for one in sections if one.parts]
    return MADE["page"].render(title=title, sections=shown, policy=Markup(policy), style=Markup(STYLE))
