"""The table of claims and what belongs to it as plain text, as Markdown, and as one self-contained HTML page."""

import base64
import html
from typing import NamedTuple

from experiments.claims import COLUMNS
from minicnn.files import write_atomically


class Text(NamedTuple):
    """What stands around the table."""

    title: str
    introduction: str
    footer: str


class Section(NamedTuple):
    """What follows the table: preformatted text, and pictures as (caption, path of a PNG)."""

    heading: str
    text: str
    pictures: list


def write(folder, text, table, sections):
    """Write report.md and report.html beside the figures. table: list of claims.Row; sections: list of Section."""
    write_atomically(folder / "report.md", markdown(text, table, sections, folder).encode(errors="replace"))
    write_atomically(folder / "report.html", page(text, table, sections).encode(errors="replace"))


def terminal(table):
    """The table as plain text for a terminal, a block a claim."""
    labels = ("", "paper", "author's logs", "author's networks", "plain", "scaled", "verdict")
    width = max(map(len, labels))
    blocks = []
    for row in table:
        lines = [row.claim] + [f"  {n:{width}}  {c}" for n, c in zip(labels[1:], row[1:], strict=True)]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _in_lines(cell, escape):
    """A cell of a table, its figures, which semicolons part, a line each; a verdict is a sentence and stays one."""
    return "<br>".join(map(escape, [cell] if cell.endswith(".") else cell.split("; ")))


def markdown(text, table, sections, folder):
    """The report as GitHub Markdown, to be kept in `folder`, to which the pictures' paths are relative."""
    lines = [f"# {text.title}\n", f"{text.introduction}\n"]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += [
        "| " + " | ".join(_in_lines(cell, lambda part: part.replace("|", "\\|")) for cell in row) + " |"
        for row in table
    ]
    for section in sections:
        lines.append(f"\n## {section.heading}\n")
        lines += [f"```\n{section.text}\n```\n"] if section.text else []
        lines += [f"![{caption}]({path.relative_to(folder)})\n\n{caption}\n" for caption, path in section.pictures]
    return "\n".join([*lines, f"\n{text.footer}\n"])


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; max-width: 84rem; margin: 2rem auto;
  padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; }
th, td { border: 1px solid #ccc; padding: .4rem .5rem; text-align: left; vertical-align: top; }
th { background: #f3f3f3; }
td:first-child { font-weight: 600; }
td:last-child { min-width: 15rem; background: #fafafa; }
pre { font-size: 11px; overflow-x: auto; }
figure { margin: 2rem 0; break-inside: avoid; }
img { max-width: 100%; }
figcaption, footer { color: #555; font-size: 13px; }
@media print { body { margin: 0; font-size: 11px; } table { font-size: 9px; } tr { break-inside: avoid; } }
"""


def page(text, table, sections):
    """The report as one self-contained HTML page, the pictures in it."""
    escape = html.escape
    head = "".join(f"<th>{escape(c)}</th>" for c in COLUMNS)
    body = "\n".join("<tr>" + "".join(f"<td>{_in_lines(c, escape)}</td>" for c in row) + "</tr>" for row in table)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(text.title)}</title><style>{STYLE}</style></head>
<body><h1>{escape(text.title)}</h1><p>{escape(text.introduction)}</p>
<table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table>
{"".join(map(_html_section, sections))}
<footer>{escape(text.footer)}</footer></body></html>
"""


def _html_section(section):
    pictures = [(html.escape(c), base64.b64encode(path.read_bytes()).decode()) for c, path in section.pictures]
    figures = "\n".join(
        f'<figure><img alt="{caption}" src="data:image/png;base64,{png}"><figcaption>{caption}</figcaption></figure>'
        for caption, png in pictures
    )
    text = f"<pre>{html.escape(section.text)}</pre>\n" if section.text else ""
    return f"<h2>{html.escape(section.heading)}</h2>\n{text}{figures}\n"
