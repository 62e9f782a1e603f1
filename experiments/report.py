"""Reports made of paragraphs, lists, pictures and tables: as text for a terminal, as Markdown, and as one
self-contained HTML page."""

import base64
import html
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

from minicnn.files import write_atomically

WIDTH = 80  # of what is printed, in characters
FORMATS = {float: "{:+.2f}", int: "{:,}", type(None): "none", str: "{}"}  # of a cell; floats are exponents

# Folds a page on small screens, those of report.css. Without a script, and on paper, everything is open.
FOLD = """
const unfold = open => document.querySelectorAll("details").forEach(section => { section.open = open; });
unfold(!matchMedia("(max-width: 60rem)").matches);
addEventListener("beforeprint", () => unfold(true));
"""


class Picture(NamedTuple):
    """A PNG file and what it shows, as a sentence."""

    caption: str
    path: Path


class Table(NamedTuple):
    """Rows, dicts column -> cell with the same columns. What a cell lists stands between semicolons, a sentence has its
    full stop. cards: whether a small screen shows a card a row, its empty cells left out."""

    rows: list[dict]
    cards: bool = False

    def __str__(self):
        """As lines of WIDTH characters at most, heads wrapped at spaces. Columns for which there is no room stand
        below, beside the first column again."""
        label, *others = (_column(head, [row[head] for row in self.rows]) for head in self.rows[0])
        blocks = [[label]]
        for column in others:
            if len(blocks[-1]) > 1 and sum(2 + len(c[0]) for c in [*blocks[-1], column]) > WIDTH:
                blocks.append([label])
            blocks[-1].append(column)
        return "\n\n".join("\n".join(_lines(block)) for block in blocks)

    def texts(self):
        """Heads and rows as lists of text, without the columns that are empty in every row."""
        heads = [head for head in self.rows[0] if any(row[head] != "" for row in self.rows)]
        return heads, [[_text(row[head]) for head in heads] for row in self.rows]


class Parts(list):
    """Paragraphs (str), lists of points (list of str), Tables and Pictures; as str what a terminal shows of them."""

    def __str__(self):
        shown = []
        for part in self:
            if isinstance(part, Table):
                shown.append(str(part))
            elif not isinstance(part, Picture):
                points, indent = ([part], 2) if isinstance(part, str) else (part, 4)
                shown.append("\n".join(wrapped(point, indent) for point in points))
        return "\n\n".join(shown)


class Section(NamedTuple):
    """Parts under a heading, of level 2 or 3. folded: whether a small screen shows the heading alone until it is
    opened. more: what a longer report puts among its tables."""

    heading: str
    parts: Parts
    level: int = 2
    folded: bool = False
    more: Parts = Parts()

    def whole(self):
        """The Parts and what is more."""
        return Parts([*self.parts, *self.more])


def write(folder, title, sections, footer):
    """Write report.md and report.html beside their pictures. sections: the first one's heading is not shown."""
    for name, text in (
        ("report.md", markdown(title, sections, footer, folder)),
        ("report.html", page(title, sections, footer)),
    ):
        write_atomically(folder / name, text.encode(errors="replace"))


def terminal(table):
    """A Table of sentences as plain text, a block a row."""
    heads, rows = table.texts()
    width = max(map(len, heads[1:]))
    blocks = []
    for row in rows:
        lines = [row[0]]
        for label, cell in zip(heads[1:], row[1:], strict=True):
            indents = {"initial_indent": f"  {label:{width}}  ", "subsequent_indent": " " * (width + 4)}
            lines += [textwrap.fill(cell, WIDTH, **indents, break_on_hyphens=False)] if cell else []
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _text(cell):
    return FORMATS[type(cell)].format(cell)


def _column(head, cells):
    """The lines of a column of a table, all as wide as the longest cell or word of the head."""
    cells = [_text(cell) for cell in cells]
    width = max(min(len(head), 6), *map(len, [*cells, *head.split()]))
    return [line.rjust(width) for line in [*(textwrap.wrap(head, width) or [""]), *cells]]


def _lines(columns):
    """Columns side by side, their last lines level, the first to the left."""
    depth = max(map(len, columns))
    first, *others = ([" " * len(column[0])] * (depth - len(column)) + column for column in columns)
    lines = zip([line.strip().ljust(len(line)) for line in first], *others, strict=True)
    return ["  " + "  ".join(line).rstrip() for line in lines]


def wrapped(text, indent=2):
    """A sentence in lines of WIDTH characters at most, the second and further ones indented by two more."""
    return textwrap.fill(text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * (indent + 2))


def typeset(text):
    """Text as HTML, which Markdown takes, too: powers (10^-63, 3e-05) raised, indices (p_k) lowered, and the signs that
    ASCII lacks."""
    text = re.sub(r"\b1e([-+]?\d+)\b", r"10^\1", html.escape(text, quote=False))
    text = re.sub(r"(\d)e([-+]\d+)\b", r"\1 × 10^\2", text)
    text = re.sub(r"\b([pxz])_([a-z])\b", r"\1<sub>\2</sub>", text)
    text = re.sub(r"(\d|\bN)\^([-+]?)0*(\d+(?:\.\d+)?)", r"\1<sup>\2\3</sup>", text)
    return text.replace("<sup>+", "<sup>").replace("<sup>-", "<sup>\u2212").replace("+-", "±")


def _cell(cell):
    """What a cell lists, a line each."""
    return "<br>".join(map(typeset, [cell] if cell.endswith(".") else cell.split("; ")))


def markdown(title, sections, footer, folder):
    """The report as GitHub Markdown, to be kept in `folder`, to which the pictures' paths are relative."""
    blocks = [f"# {typeset(title)}"]
    for i, section in enumerate(sections):
        blocks += [f"{'#' * section.level} {typeset(section.heading)}"] if i else []
        blocks += [_markdown(part, folder) for part in section.parts]
    return "\n\n".join([*blocks, typeset(footer)]) + "\n"


def _markdown(part, folder):
    if isinstance(part, str):
        return typeset(part)
    if isinstance(part, Picture):
        return f"![{part.caption}]({part.path.relative_to(folder).as_posix()})\n\n*{typeset(part.caption)}*"
    if isinstance(part, Table):
        heads, rows = part.texts()
        lines = [[*map(typeset, heads)], ["---"] * len(heads), *([*map(_cell, row)] for row in rows)]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return "\n".join(f"- {typeset(point)}" for point in part)


def page(title, sections, footer):
    """The report as one self-contained HTML page, the pictures in it."""
    body, style = [], Path(__file__).with_suffix(".css").read_text("utf-8")
    for i, section in enumerate(sections):
        heading = f"<h{section.level}>{typeset(section.heading)}</h{section.level}>" if i else ""
        if section.folded:
            heading = f"<details open><summary>{heading}</summary>"
        parts = [heading, *map(_html, section.parts), *["</details>"] * section.folded]
        body.append(_unbroken("\n".join(["<section>", *parts, "</section>"])))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>
{style}</style></head>
<body><h1>{typeset(title)}</h1>
{chr(10).join(body)}
<footer>{typeset(footer)}</footer>
<script>{FOLD}</script></body></html>
"""


def _unbroken(text):
    """HTML in which no line ends within T = 20, n = 5, p < 0.05 or 72 %."""
    text = re.sub(r"\b([Tnp]) (=|&lt;) (?=\d)", r"\1&nbsp;\2&nbsp;", text)
    return re.sub(r"(\d) %", r"\1&nbsp;%", text)


def _html(part):
    if isinstance(part, str):
        return f"<p>{typeset(part)}</p>"
    if isinstance(part, Picture):
        png, caption = base64.b64encode(part.path.read_bytes()).decode(), typeset(part.caption)
        image = f'<img alt="{html.escape(part.caption)}" src="data:image/png;base64,{png}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    if isinstance(part, Table):
        heads, rows = part.texts()
        top = "".join(f"<th>{typeset(head)}</th>" for head in heads)
        lines = (
            "".join(
                f'<td data-head="{html.escape(head)}">{_cell(cell)}</td>' for head, cell in zip(heads, row, strict=True)
            )
            for row in rows
        )
        body = "\n".join(f"<tr>{line}</tr>" for line in lines)
        kind = ' class="cards"' if part.cards else ""
        return f"<table{kind}><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table>"
    return "<ul>" + "".join(f"<li>{typeset(point)}</li>" for point in part) + "</ul>"
