"""The writers of reports: every paragraph, point, cell and picture is in each of them, and on a phone nothing is wider
than the screen."""

import re
from html.parser import HTMLParser

import pytest

from experiments import claims, report
from experiments.claims import Row
from experiments.report import Parts, Picture, Section, Table
from tests.experiments.conftest import emulate

ROWS = [
    Row("one | two", "72%", "none", "", "a: 1%; b: 5%", "c; d", "Judged; in one sentence."),
    Row("three", "by 10^10", "none", "", "x < y", "", "Not judged, p = 3e-05."),
]
CLAIMS = claims.as_table(ROWS)


@pytest.fixture
def sections(tmp_path):
    picture = tmp_path / "author" / "one.png"
    picture.parent.mkdir()
    picture.write_bytes(b"\x89PNG")
    return [
        Section("Not shown", Parts(["The finding.", Picture("one & two", picture)])),
        Section("Why", Parts(["p < q", ["first point", "second"]])),
        Section("Tables", Parts([CLAIMS, Table([{"n": 1200, "": None}])]), level=3, folded=True),
    ]


def test_terminal_has_a_block_a_claim_without_what_is_empty():
    first, second = (block.splitlines() for block in report.terminal(CLAIMS).split("\n\n"))
    assert first[0] == "one | two" and second[0] == "three"
    assert [line.split()[0] for line in first[1:]] == ["paper", "author's", "plain", "scaled", "verdict"]
    assert [line.split()[0] for line in second[1:]] == ["paper", "author's", "plain", "verdict"]
    assert first[-1].endswith("  Judged; in one sentence.")


def test_terminal_wraps_what_is_long():
    long = ROWS[0]._replace(verdict="Judged, " + 30 * "at length, " + "in one sentence.")
    lines = report.terminal(claims.as_table([long])).splitlines()
    assert max(map(len, lines)) <= report.WIDTH
    text = " ".join(line.strip() for line in lines)
    assert re.search(f"verdict +{re.escape(long.verdict)}$", text)


def test_table_has_a_line_a_row_under_wrapped_heads():
    rows = [
        {"attack": "one", "of these in 100 moves": 12345, "log10": 1.5, "": None},
        {"attack": "another", "of these in 100 moves": 7, "log10": -20.0, "": "x"},
    ]
    assert str(Table(rows)).splitlines() == [
        "               of",
        "            these",
        "           in 100",
        "  attack    moves   log10",
        "  one      12,345   +1.50  none",
        "  another       7  -20.00     x",
    ]


def test_table_continues_below_where_the_width_ends():
    row = {"attack": "margin"} | {f"column {i}": 30 * str(i) for i in range(5)}
    blocks = [block.splitlines() for block in str(Table([row, row])).split("\n\n")]
    assert [len(block) for block in blocks] == [3, 3, 3]
    assert all(len(line) <= report.WIDTH for block in blocks for line in block)
    assert all(line.startswith("  margin  ") for block in blocks for line in block[1:])
    assert [i for i in range(5) for block in blocks if 30 * str(i) in block[1]] == [*range(5)]


def test_wrapped_indents_what_follows():
    lines = report.wrapped("word " * 40, 4).splitlines()
    assert len(lines) > 1 and max(map(len, lines)) <= report.WIDTH
    assert lines[0].startswith("    word") and all(line.startswith("      word") for line in lines[1:])


def test_parts_in_a_terminal_are_all_but_the_pictures(tmp_path):
    parts = Parts(["A paragraph.", Picture("unseen", tmp_path), ["point", "other"], Table([{"n": 1200}])])
    assert str(parts).split("\n\n") == ["  A paragraph.", "    point\n    other", str(parts[-1])]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10^-63 to 10^-63.5, by 10^10", "10<sup>−63</sup> to 10<sup>−63.5</sup>, by 10<sup>10</sup>"),
        ("p < 1e-6", "p &lt; 10<sup>−6</sup>"),
        ("max 9.78318e-05, 2e+10", "max 9.78318 × 10<sup>−5</sup>, 2 × 10<sup>10</sup>"),
        ("p_k, 1 - p_j", "p<sub>k</sub>, 1 - p<sub>j</sub>"),
        ("5% +- 1%", "5% ± 1%"),
        ("O(N^2), log N", "O(N<sup>2</sup>), log N"),
        ("figures_1_and_2_plain.png, x^y, plain_float32", "figures_1_and_2_plain.png, x^y, plain_float32"),
        ("a & <b>", "a &amp; &lt;b&gt;"),
    ],
)
def test_typeset(text, expected):
    assert report.typeset(text) == expected


def test_markdown_holds_every_part(sections, tmp_path):
    lines = report.markdown("a < b", sections, "end", tmp_path).splitlines()
    assert "| claim | paper | author's runs | plain | scaled | verdict |" in lines
    assert "| one \\| two | 72% | none | a: 1%<br>b: 5% | c<br>d | Judged; in one sentence. |" in lines
    verdict = "Not judged, p = 3 × 10<sup>−5</sup>."
    assert f"| three | by 10<sup>10</sup> | none | x &lt; y |  | {verdict} |" in lines
    assert {"# a &lt; b", "The finding.", "## Why", "p &lt; q", "- first point", "- second", "### Tables"} <= set(lines)
    assert {"![one & two](author/one.png)", "*one &amp; two*", "| 1,200 | none |", "end"} <= set(lines)
    assert not any("Not shown" in line for line in lines)


class Page(HTMLParser):
    """Cells, links and text of an HTML page, and its tags that were opened and not closed."""

    def __init__(self, source):
        super().__init__()
        self.cells, self.links, self.text, self.open = 0, [], [], []
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.cells += tag == "td"
        self.links += [value for key, value in attributes if key in ("src", "href")]
        self.open += [] if tag in ("meta", "img", "br") else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_page_holds_every_part(sections):
    page = Page(report.page("a < b", sections, "end"))
    assert page.cells == 6 * len(ROWS) + 2 and page.open == []
    assert page.links == ["data:image/png;base64,iVBORw=="]
    assert {"a < b", "The finding.", "Why", "p < q", "first point", "second", "Tables", "one & two", "end"} <= set(
        page.text
    )
    assert {"one | two", "a: 1%", "b: 5%", "x < y", "Judged; in one sentence.", "1,200"} <= set(page.text)
    assert "Not shown" not in page.text


def test_page_keeps_together_what_is_read_together():
    parts = Parts(["At T = 20, p < 1e-6, 72 % of 3 x 4, p = q, s = 50.", Table([{"n < 5": "1"}])])
    page = report.page("A title", [Section("", parts)], "end")
    assert "At T&nbsp;=&nbsp;20, p&nbsp;&lt;&nbsp;10<sup>−6</sup>, 72&nbsp;% of 3 x 4, p = q, s = 50." in page
    assert "n&nbsp;&lt;&nbsp;5</th>" in page


def written(folder, sections):
    """A page in a folder."""
    path = folder / "page.html"
    path.write_text(report.page("A title", sections, "end"), "utf-8")
    return path


def scroll_width(driver):
    return driver.execute_script("return document.scrollingElement.scrollWidth")


def test_write_makes_both_files(sections, tmp_path):
    report.write(tmp_path, "a < b", sections, "end")
    assert (tmp_path / "report.md").read_text("utf-8") == report.markdown("a < b", sections, "end", tmp_path)
    assert (tmp_path / "report.html").read_text("utf-8") == report.page("a < b", sections, "end")


@pytest.mark.parametrize("width", [360, 1400])
def test_page_in_a_browser(sections, tmp_path, driver, width):
    """Nothing is wider than the screen; on a phone a row is a card, without its empty cells; both grounds contrast."""
    wide = Table([{f"column {i}": f"{i} of 1000 images (10-20)" for i in range(9)}])
    sections.append(Section("Wide", Parts([wide, 3 * "a long word " + 100 * "x"])))
    path = written(tmp_path, sections)
    for scheme in ("light", "dark"):
        emulate(driver, width, scheme)
        driver.get(path.as_uri())
        driver.execute_script("unfold(true)")
        assert scroll_width(driver) <= width
        displays = driver.execute_script(
            "return [...document.querySelectorAll('.cards td')].map(cell => getComputedStyle(cell).display)"
        )
        assert displays.count("none") == (1 if width == 360 else 0)
        assert ("block" if width == 360 else "table-cell") in displays
        colours = "let s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
        ink, ground = (sum(map(int, re.findall(r"\d+", colour)[:3])) / 765 for colour in driver.execute_script(colours))
        assert abs(ink - ground) > 0.6 and (ground > 0.5) == (scheme == "light")


@pytest.mark.parametrize("width", [320, 801, 961])
def test_claims_with_names_of_files_fit_any_screen(tmp_path, driver, width):
    row = Row("a claim", "four of each", "none", *3 * ("figures_1_and_2_author_plain.png",), "Drawn from this run.")
    emulate(driver, width)
    driver.get(written(tmp_path, [Section("", Parts([claims.as_table([row])]))]).as_uri())
    assert scroll_width(driver) <= width


def test_a_phone_unfolds_what_is_asked_for_and_paper_everything(sections, tmp_path, driver):
    from selenium.webdriver import Keys

    def is_open():
        return driver.execute_script("return [...document.querySelectorAll('details')].map(folded => folded.open)")

    path = written(tmp_path, [*sections, sections[-1]])
    emulate(driver, 1400)
    driver.get(path.as_uri())
    assert is_open() == [True, True]
    emulate(driver, 360)
    driver.get(path.as_uri())
    assert is_open() == [False, False]
    driver.switch_to.active_element.send_keys(Keys.TAB)
    driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert is_open() == [True, False]
    driver.execute_cdp_cmd("Page.printToPDF", {})
    assert is_open() == [True, True]


def test_a_phone_shows_what_the_rows_of_a_table_are_of(tmp_path, driver):
    """The head of the first column, which names the network, above the cards; that of a claim says nothing."""
    tables = [Table([{f"{name}, moves:": "Algorithm 1", "10": "8.3%"}]) for name in ("standard", "distilled")]
    emulate(driver, 360)
    driver.get(written(tmp_path, [Section("", Parts([CLAIMS, *tables]))]).as_uri())
    heads = "return [...document.querySelectorAll('th')].filter(head => head.offsetHeight).map(head => head.innerText)"
    assert driver.execute_script(heads) == ["standard, moves:", "distilled, moves:"]
    label = "return getComputedStyle(document.querySelector('table:not(.cards) td + td'), '::before').content"
    assert driver.execute_script(label) == '"10"'
