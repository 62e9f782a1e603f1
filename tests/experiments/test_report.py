"""The writers of the report: every row, text and picture is in each of them."""

from html.parser import HTMLParser

import pytest

from experiments import report
from experiments.claims import Row

TABLE = [
    Row("one | two", "72%", "none", "needs a file", "a: 1%; b: 5%", "c; d", "Judged; in one sentence."),
    Row("three", "by 10^10", "none", "needs a file", "x < y", "z", "Not judged."),
]
TEXT = report.Text("a < b", "introduction", "end")


@pytest.fixture
def sections(tmp_path):
    picture = tmp_path / "author" / "one.png"
    picture.parent.mkdir()
    picture.write_bytes(b"\x89PNG")
    return [report.Section("Figures", "", []), report.Section("Why", "p < q", [("one & two", picture)])]


def test_terminal_has_a_block_a_claim():
    first, second = (block.splitlines() for block in report.terminal(TABLE).split("\n\n"))
    assert first[0] == "one | two" and second[0] == "three"
    assert [line.split(maxsplit=1)[0] for line in first[1:]] == [
        "paper",
        "author's",
        "author's",
        "plain",
        "scaled",
        "verdict",
    ]
    assert first[-1].endswith("  Judged; in one sentence.")


def test_markdown_holds_every_row_text_and_picture(sections, tmp_path):
    lines = report.markdown(TEXT, TABLE, sections, tmp_path).splitlines()
    assert "| one \\| two | 72% | none | needs a file | a: 1%<br>b: 5% | c<br>d | Judged; in one sentence. |" in lines
    assert "| three | by 10^10 | none | needs a file | x < y | z | Not judged. |" in lines
    assert {"# a < b", "introduction", "## Figures", "## Why", "p < q"} <= set(lines)
    assert {"![one & two](author/one.png)", "one & two", "end"} <= set(lines)


class Page(HTMLParser):
    """Cells, links and text of an HTML page."""

    def __init__(self, source):
        super().__init__()
        self.cells, self.links, self.text = 0, [], []
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.cells += tag == "td"
        self.links += [value for key, value in attributes if key in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def test_page_holds_every_row_text_and_picture(sections):
    page = Page(report.page(TEXT, TABLE, sections))
    assert page.cells == 7 * len(TABLE)
    assert page.links == ["data:image/png;base64,iVBORw=="]
    assert {"a < b", "introduction", "Figures", "Why", "p < q", "one & two", "end"} <= set(page.text)
    assert {"one | two", "a: 1%", "b: 5%", "x < y", "Judged; in one sentence."} <= set(page.text)


def test_write_makes_both_files(sections, tmp_path):
    report.write(tmp_path, TEXT, TABLE, sections)
    assert (tmp_path / "report.md").read_text("utf-8") == report.markdown(TEXT, TABLE, sections, tmp_path)
    assert (tmp_path / "report.html").read_text("utf-8") == report.page(TEXT, TABLE, sections)
