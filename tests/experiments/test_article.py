"""The report as a paper: its outline, what its sentences say for other figures, what stands where."""

import json

import pytest

from experiments import article, claims, common, replay, report, reproduce
from experiments.claims import Missing, Results
from experiments.report import Parts, Picture, Section, Table
from minicnn.paper.networks import PAPER_NETWORKS
from tests.experiments import test_claims
from tests.experiments.conftest import emulate

LEFT = {"dataset": "digits", "command": "it", "date": "then"}  # by an experiment in the folder


@pytest.fixture
def told(tmp_path):
    """A function that writes the article of networks with given success rates: (title, sections, footer)."""

    def tell(theirs=Missing("needs a file"), seeds=1, dataset="digits", studied=(), machine=(), **shares):
        runs = [test_claims.a_run(**shares) for _ in range(seeds)]
        appendix = theirs if isinstance(theirs, Missing) else Missing("needs the map")
        judged = claims.judge(Results(runs, 20.0, theirs, appendix))
        rates = reproduce.over_seeds(runs)
        if not isinstance(theirs, Missing):
            rates |= reproduce.over_seeds([theirs], article.THEIRS)
        names = ("finding", "success", "figures_1_and_2_plain", "saliency_temperature", "standard")
        results = {
            "runs": [{"epochs": dict.fromkeys(run, 20), "networks": run} for run in runs],
            "author": theirs.reason if isinstance(theirs, Missing) else {},
            "temperature": 20.0,
            "dataset": dataset,
            "sample": {"seed": 0, "count": 200},
            "setting": {"limit": 100, "maximum": 1.0, "T": 1.0, "ties": "all"},
            "denominator": "correct",
            "comparisons": claims.comparisons(judged),
            "command": "the command",
            "date": "today",
            "versions": {"minicnn": "1"},
            "machine": {"processor": "a processor", "cores": 2, "device": "cpu", **dict(machine)},
        }
        results["setting"]["images"] = {"1": 200, "2": 50, "3": 200, "4": 10, "author": 50}
        pictures = {name: Picture(name, tmp_path / f"{name}.png") for name in names}
        return article.article(results, judged, rates, pictures, tmp_path, studied)

    return tell


def parts_of(sections, heading):
    (section,) = (section for section in sections if section.heading == heading)
    return section.parts


def captions(parts):
    return [part.caption for part in parts if isinstance(part, Picture)]


def test_article_has_the_outline_of_a_paper(told):
    title, sections, footer = told()
    outline = ["The finding", "The claim", "The method", "What is exact", "The result", "Why", "Limits"]
    folded = ["The paper's claims, one by one", "The networks, over their seeds", "Figures 1 and 2", "Saliency maps"]
    assert [s.heading for s in sections] == [*outline, "Figures and tables", *folded, "Settings"]
    assert [s.heading for s in sections if s.folded] == folded
    assert "digits" in title and footer.startswith("the command, today, minicnn 1, a processor")
    shown = {s.heading: captions(s.parts) for s in sections if captions(s.parts)}
    assert shown == {
        "The finding": ["finding"],
        "The result": ["success"],
        "The networks, over their seeds": ["standard"],
        "Figures 1 and 2": ["figures_1_and_2_plain"],
        "Saliency maps": ["saliency_temperature"],
    }
    assert not any(isinstance(part, Table) for section in sections[:8] for part in section.parts)
    assert footer.endswith("2 cores, cpu") and told(machine={"gpu": "a card"})[2].endswith("2 cores, a card")


@pytest.mark.parametrize(
    ("temperature", "conclusion"),
    [
        ((0.05, 0.85), "the difference between the networks is not significant: the robustness was underflow."),
        ((0.05, 0.99), "the T = 20 network is the weaker one: the robustness was underflow."),
        ((0.05, 0.5), "the T = 20 network is the more robust one: the rest was underflow."),
        ((0.6, 0.85), "the difference between the networks is not significant."),
    ],
)
def test_article_begins_with_a_finding_that_is_computed(told, temperature, conclusion):
    _, sections, _ = told(standard=(0.6, 0.84), temperature=temperature)
    finding = sections[0].parts[0]
    plain, scaled = (f"{share:.1%}" for share in temperature)
    assert f"succeeds on {plain} of the images" in finding and f"on {scaled} in float32 that does not" in finding
    assert "60.0% and 84.0%" in finding and finding.endswith(f"Without underflow {conclusion}")


def test_article_tells_once_what_needs_the_author_s_networks(told):
    _, sections, _ = told()
    (exact,) = parts_of(sections, "What is exact")
    assert exact.endswith("Not judged: it needs a file.")
    heads, rows = parts_of(sections, "The paper's claims, one by one")[0].texts()
    assert "author's networks" not in heads
    assert sum("needs a file" in cell for row in rows for cell in row) == 1
    _, sections, _ = told(theirs=test_claims.a_run())
    assert "the author's standard" in parts_of(sections, "What is exact")[1]
    assert "author's networks" in parts_of(sections, "The paper's claims, one by one")[0].texts()[0]


def test_article_names_its_limits(told):
    def limits(**changes):
        return " ".join(parts_of(told(**changes)[1], "Limits")[0])

    assert "One seed" in limits() and "At most 20 epochs" in limits() and "8 x 8 pixels" in limits()
    assert "--masking adds" in limits() and "--masking" not in limits(studied={"Study": {}})
    assert "3 seeds" in limits(seeds=3) and "8 x 8" not in limits(dataset="mnist")


def test_article_parts_the_text_of_a_study_from_its_tables(told, tmp_path):
    """In the text what is most telling of these networks, and a sentence of others; all the rest among the tables."""
    table, picture = Table([{"a": 1}]), Picture("shown", tmp_path / "shown.png")
    control = Section("Control", Parts(["A sentence.", picture]), more=Parts([table, "A note."]))
    theirs = control._replace(parts=Parts(["Another sentence.", picture]))
    cost = Section("Cost", Parts(), more=Parts([table]))
    _, sections, _ = told(studied={"Study": {"control": control, "cost": cost}, "His": {"control": theirs}})
    headings = [(s.heading, s.level) for s in sections]
    assert headings.index(("Why", 2)) + 1 == headings.index(("Study", 3)) == headings.index(("Limits", 2)) - 1
    assert parts_of(sections, "Study") == ["A sentence.", "His: another sentence.", picture]
    after = dict(headings[headings.index(("Figures and tables", 2)) :])
    assert after["Study: Control"] == after["Study: Cost"] == after["His: Control"] == 3
    assert parts_of(sections, "Study: Control") == [table, "A note."]
    assert parts_of(sections, "Study: Cost") == [table] and parts_of(sections, "His: Control") == theirs.whole()


def test_article_with_a_long_study_is_short_on_a_phone(told, tmp_path, driver):
    """Its tables are folded: each costs the lines of its heading, however many rows it has."""
    row = {"moves:": "Algorithm 1"} | dict.fromkeys(map(str, range(7)), "91.7%")
    part = Section("What it is about", Parts(3 * [Table(13 * [row])]))
    title, sections, footer = told(studied={"A study": {f"part {i}": part for i in range(16)}})
    for picture in (part for section in sections for part in section.parts if isinstance(part, Picture)):
        picture.path.write_bytes(b"\x89PNG")
    path = tmp_path / "report.html"
    path.write_text(report.page(title, sections, footer), "utf-8")
    emulate(driver, 360)
    driver.get(path.as_uri())
    size = "let page = document.scrollingElement; return [page.scrollWidth, page.scrollHeight / innerHeight]"
    width, folded = driver.execute_script(size)
    driver.execute_script("unfold(true)")
    unfolded_width, unfolded = driver.execute_script(size)
    assert max(width, unfolded_width) <= 360 and folded < 10 < 60 < unfolded


def test_article_shows_what_other_experiments_left_in_the_folder(told, tmp_path, capsys):
    ours = {
        "succeeded": 1,
        "pixels": None,
        "wrong_before": 0,
        "compared": 2,
        "differing": [],
        "attacked": 2,
        "plain": 1,
    }
    results = {"dataset": "mnist", "command": "replay it", "date": "then", "versions": {}}
    runs = [{"his": run._asdict(), "ours": ours} for run in replay.RUNS]
    (tmp_path / "replay.json").write_text(json.dumps(results | {"runs": runs}))
    (tmp_path / "replay.png").touch()
    heading = "The author's runs, image for image"
    headings = [s.heading for s in told(dataset="mnist")[1]]
    assert headings.index("What is exact") + 1 == headings.index(heading) and headings.count(heading) == 2
    (tables,) = (s for s in told(dataset="mnist")[1][-3:] if s.heading == heading)
    assert tables.parts[-1] == "replay it, then"
    assert heading not in [s.heading for s in told(dataset="digits")[1]]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("contents", "picture"),
    [
        (json.dumps(LEFT), True),
        (json.dumps(LEFT | {"parts": ["text", "table"]})[:-9], True),
        ("[]", True),
        (json.dumps(LEFT | {"parts": ["text"], "rows": []}), True),
        (json.dumps(LEFT | {"parts": ["text"], "rows": [{"a": 1}]}), False),
        (None, True),
    ],
    ids=["another version", "truncated", "no dict", "a table without rows", "no picture", "a folder"],
)
def test_article_leaves_out_what_is_incomplete(told, tmp_path, monkeypatch, capsys, contents, picture):
    def section(found, folder):
        return Section("Left", Parts([*found["parts"], Picture("p", folder / "p.png"), Table(found["rows"])]))

    monkeypatch.setitem(article.SECTIONS, "sweep", section)
    path = tmp_path / "sweep.json"
    path.write_text(contents) if contents else path.mkdir()
    if picture:
        (tmp_path / "p.png").touch()
    assert "Left" not in [s.heading for s in told()[1]]
    note = f"note: {path} is incomplete or was written by another version: it is left out of the report\n"
    assert capsys.readouterr().err == note


def test_article_without_samples_judges_nothing(told):
    nothing = test_claims.a_run()
    for network in nothing.values():
        for arithmetic in ("plain", "scaled"):
            network["attacks"]["1"][arithmetic] |= {"succeeded": 0, "counted": 0}
    rates = reproduce.over_seeds([nothing])
    assert article.finding(None, rates, "T = 20") == "Not judged: no samples."
    row = article.means(rates).rows[0]
    assert row["Algorithm 1, plain"] == "no samples" and row["accuracy"] == "99.00%"


@pytest.mark.parametrize("zeros", [0.0, 0.95])
def test_article_says_of_how_many_maps_its_reason_is_true(told, zeros):
    budget = {"plain": {"zero_share": zeros}, "terms": {"temperature": -1, "jacobian": 1, "saturation": -9}}
    results = {"runs": [{"networks": {"temperature": {"gradient": budget}}}]}
    why, _ = article.reason(results, claims.Row(*7 * [""]), "T = 5")
    assert f"the map is 0 everywhere: on the network trained at T = 5 that of {zeros:.1%} of the images" in why


def test_means_have_a_spread_where_there_are_several_seeds():
    runs = [test_claims.a_run() for _ in range(2)]
    assert " +- " in article.means(reproduce.over_seeds(runs)).rows[0]["accuracy"]
    rows = article.means(reproduce.over_seeds(runs[:1])).rows
    assert [row["network"] for row in rows] == list(PAPER_NETWORKS) and "+-" not in rows[0]["accuracy"]


@pytest.mark.parametrize("name", article.SECTIONS)
def test_article_has_a_place_for_every_experiment_beside_it(told, tmp_path, monkeypatch, name):
    section = Section("Left", Parts(["What it tells."]), more=Parts(["And more."]))
    monkeypatch.setitem(article.SECTIONS, name, lambda *_: section)
    (tmp_path / f"{name}.json").write_text(json.dumps({"dataset": "digits", "command": "made by", "date": "then"}))
    text, tables = (s for s in told()[1] if s.heading == "Left")
    assert text.parts == section.parts and tables.parts == ["And more.", "made by, then"] and tables.folded
    assert (common.RESULTS.parent / f"{name}.py").exists()
