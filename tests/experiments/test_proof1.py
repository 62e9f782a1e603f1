"""The command proof1: its tables and pictures, what it does without a network, and --symbolic."""

import itertools
import re

import numpy as np
import pytest

from experiments import common
from experiments import proof1 as experiment
from minicnn.paper import proof1_measured as measured
from minicnn.paper import proof1_symbolic as symbolic
from tests.experiments.conftest import PNG, TRAINED, assert_mistake, read_json, run, succeed


@pytest.fixture(scope="module")
def walked(trained, tmp_path_factory):
    """The walk with a network: its folder, results and output."""
    folder = tmp_path_factory.mktemp("walked")
    out = succeed("proof1", "--weights", trained[0] / f"{TRAINED}.npz", "--images", 1, "--out", folder)
    return folder, read_json(folder / f"proof1_{TRAINED}.json"), out


def cells(text, title):
    """The lines of the table under a title, split where two spaces or more are: heads, then rows."""
    lines = text[text.index(title) :].splitlines()[1:]
    heads = re.split(r"  +", lines[0].strip())
    rows = [re.split(r"  +", line.strip()) for line in lines[1:]]
    return [heads, *itertools.takewhile(lambda row: len(row) == len(heads), rows)]


def test_section_keeps_its_columns_apart():
    rows = [{"by": "a label that is long", "n": [1, 2], "x": 0.25}, {"by": "b", "n": [-1, 10], "x": 1}]
    columns = ": {by} | a long head: {n[0]} | n: {n[1]:.1f} | x: {x:.0%}"
    assert experiment.section("Title", columns, rows, "word " * 20).splitlines() == [
        "Title",
        "                         a long head     n     x",
        "   a label that is long            1   2.0   25%",
        "   b                              -1  10.0  100%",
        "   " + ("word " * 15).strip(),
        "   " + ("word " * 5).strip(),
    ]


def test_walk_shows_each_figure_under_its_name(walked):
    _, results, out = walked
    forms = cells(out, "1. Each form")
    assert [row[0] for row in forms[1:]] == [str(row["T"]) for row in results["forms"]]
    names = (
        "printed_4",
        "corrected_4",
        "printed_5",
        "corrected_5",
        "cross_entropy",
        "engine_probability",
        "engine_loss",
    )
    assert forms[3][1:] == [f"{results['forms'][2]['off'][name]:.0e}" for name in names]
    sums = results["forms"][1]
    stated = sums["sums_stated_times_T"]
    found = [sums["p_k"], sums["sums_times_T"]["printed_4"], stated["printed_4"], sums["sums_times_T"]["printed_5"]]
    assert cells(out, "2. T times the sum")[2][1:6] == [f"{value:.4f}" for value in (*found, stated["printed_5"])]
    assert cells(out, "3. T dp_k")[-1] == ["limit", "0.00e+00", "0.00e+00", "2.0e+00", "1.0e+00", "0.0e+00", "0.0e+00"]
    ratio = results["training_temperature"]["rows"][3]
    assert cells(out, "4. What training")[4] == ["0.5", f"{ratio['ratio']:.3e}", f"{ratio['predicted']:.3e}", "0.05"]
    entry = results["chain_rule"][4]
    names = ("off_scaled", "off_plain", "largest_entry", "one_minus_p_k", "direction")
    shown = cells(out, "5. From the logits")[5]
    assert shown[:3] + shown[3:4] + shown[5:] == ["20", *(f"{entry[name]:.1e}" for name in names)]
    step = results["equation_1"]["steps"][1]
    figures = [f"{step[name]:.1e}" for name in ("off", "curvature", "switches")]
    shares = [f"{step[name]:.0%}" for name in ("share_close", "share_wrong_sign")]
    assert cells(out, "6. Equation (1)")[2] == ["0.001", *figures, *shares, f"{step['rank']:.2f}"]
    picks = results["equation_1"]["picks"]["predicted"]
    assert cells(out, "pixels picked by")[2] == ["(1)", f"{picks['no_room']:.1f}", f"{picks['among_best']:.1f}"]


def test_walk_says_what_the_largest_entry_is_multiplied_by(walked):
    _, results, out = walked
    low, high = results["chain_rule"][0], results["chain_rule"][4]
    words = re.search(r"multiplied by (\S+) = (\S+) \* (\S+) \* (\S+)\. ", " ".join(out.split()))
    growth, *factors = words.groups()
    assert growth == f"{high['largest_entry'] / low['largest_entry']:.4g}"
    assert float(growth) == pytest.approx(np.prod([float(factor) for factor in factors]), rel=1e-3)


def test_walk_fits_80_columns(walked):
    folder, _, out = walked
    assert max(len(line) for line in out.splitlines() if str(folder) not in line) <= 80


def test_draw_slip_shows_the_forms_and_the_truth(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(common, "save_figure", lambda path, figure: kept.append(figure))
    experiment.draw_slip(tmp_path / "proof1.png")
    left, right = kept[0].axes
    (near_0,) = right.child_axes
    assert left.get_ylim() == right.get_ylim()
    labels = [t.get_text() for t in kept[0].legends[0].get_texts()]
    assert labels == ["(4) as printed", "(5) as printed", "corrected: the truth"]
    p_k = left.lines[0].get_xdata()
    at_k, elsewhere, magnified = ([line.get_ydata() for line in ax.lines[:3]] for ax in (left, right, near_0))
    np.testing.assert_allclose(at_k[0], p_k * (1 + p_k), rtol=1e-12)
    np.testing.assert_allclose(at_k[1], at_k[0], rtol=1e-12)
    np.testing.assert_allclose(at_k[2], p_k * (1 - p_k), rtol=1e-12)
    np.testing.assert_allclose(elsewhere[1], p_k**2, rtol=1e-12)
    np.testing.assert_allclose(elsewhere[2], -p_k * (1 - p_k) / 9, rtol=1e-10)
    np.testing.assert_allclose(elsewhere[0], -elsewhere[2], rtol=1e-12)
    np.testing.assert_array_equal(magnified, elsewhere)
    # of two curves in one place the lower is broader, the upper dashed
    below, above = left.lines[:2]
    assert below.get_linewidth() > 2 * above.get_linewidth() and above.is_dashed() and not below.is_dashed()


def test_draw_equation_1_tells_the_wrong_signs(tmp_path, monkeypatch):
    kept, rng = [], np.random.default_rng(0)
    monkeypatch.setattr(common, "save_figure", lambda path, figure: kept.append(figure))
    shape = (len(measured.FRACTIONS), 2, 9)
    moves = [{"gradient": rng.normal(size=9), "predicted": rng.normal(size=shape), "actual": rng.normal(size=shape)}]
    experiment.draw_equation_1(moves, tmp_path / "equation1.png")
    for axes, i in zip(kept[0].axes, (2, 3, 4), strict=True):
        signs = np.sign(moves[0]["predicted"][i] * moves[0]["actual"][i])
        assert [len(line.get_xdata()) for line in axes.lines[:2]] == [(signs > 0).sum(), (signs < 0).sum()]
        assert {line.get_marker() for line in axes.lines[:2]} == {".", "x"}


def assert_first_four_parts(results, out, folder, name="standard"):
    assert {"forms", "limit", "training_temperature", "seed", "command"} <= results.keys()
    assert not {"chain_rule", "equation_1", "weights"} & results.keys()
    assert f"Written:\n   {folder / 'proof1.png'}\n   {folder / f'proof1_{name}.json'}\n" in out
    assert (folder / "proof1.png").read_bytes().startswith(PNG)
    assert "4. What training" in out and "5. From the logits" not in out


@pytest.mark.parametrize("committed", [True, False])
def test_walk_without_a_network_is_its_first_four_parts(tmp_path, monkeypatch, committed):
    """The networks that come with the project are pointed to only where they are."""
    if not committed:
        monkeypatch.setattr(common, "RESULTS", tmp_path / "empty")
    code, out, err = run("proof1", "--out", tmp_path)
    results = read_json(tmp_path / "proof1_standard.json")
    assert (code, err) == (0, "")
    assert_first_four_parts(results, out, tmp_path)
    missing = results["parts_5_and_6_missing"]
    assert missing.startswith("no trained network 'standard'") and "python -m experiments.train" in missing
    closing = out[out.index("Written:") :]
    assert "Parts 5 and 6 need a trained network" in closing and missing in closing
    assert closing.endswith("that comes with the project: --dataset mnist.\n") == committed


@pytest.mark.parametrize("option", ["--weights", "--network", None])
def test_walk_with_a_network_that_fails_is_an_error_after_the_first_four_parts(tmp_path, option):
    """One that was asked for and is not there, or one that is damaged even if it was not asked for."""
    value = {"--weights": tmp_path / "none.npz", "--network": "distilled", None: tmp_path / "standard.npz"}[option]
    if option is None:
        value.write_bytes(b"no weights")
    code, out, err = run("proof1", "--out", tmp_path, *((option, value) if option else ()))
    name = {"--weights": "none", "--network": "distilled", None: "standard"}[option]
    results = read_json(tmp_path / f"proof1_{name}.json")
    assert_first_four_parts(results, out, tmp_path, name)
    assert code == 2 and err == f"error: {results['parts_5_and_6_missing']}\n" and str(value) in err
    assert "--dataset mnist" not in out


def test_walk_with_a_seed_is_on_the_network_of_that_seed(untrained, tmp_path):
    (tmp_path / "standard-seed3.npz").write_bytes((untrained / "standard.npz").read_bytes())
    succeed("proof1", "--seed", 3, "--images", 1, "--out", tmp_path)
    assert read_json(tmp_path / "proof1_standard-seed3.json")["weights"] == str(tmp_path / "standard-seed3.npz")
    assert_mistake(["proof1", "--network", "standard", "--seed", 4, "--out", tmp_path], "'standard-seed4'")


def test_walk_with_too_few_images_is_an_error(untrained, tmp_path):
    weights = untrained / "standard.npz"
    code, out, err = run("proof1", "--weights", weights, "--images", 297, "--out", tmp_path)
    assert_first_four_parts(read_json(tmp_path / "proof1_standard.json"), out, tmp_path)
    assert code == 2 and re.fullmatch(
        r"error: the network classifies \d+ test images correctly: fewer than --images\n", err
    )


def test_walk_with_a_network_writes_all_parts(walked):
    folder, results, out = walked
    assert {"forms", "limit", "training_temperature", "weights", "chain_rule", "equation_1"} <= results.keys()
    assert "parts_5_and_6_missing" not in results and len(results["images"]) == 1 and results["trained_at"] == 1
    files = [folder / name for name in ("proof1.png", f"equation1_{TRAINED}.png", f"proof1_{TRAINED}.json")]
    assert out.endswith("".join(["   Written:\n", *(f"   {path}\n" for path in files)]))
    assert all(path.read_bytes().startswith(PNG) for path in files[:2])


def test_symbolic_proves_the_corrected_statements_and_refutes_the_printed_ones(tmp_path):
    out = succeed("proof1", "--symbolic", "--out", tmp_path)
    rows = read_json(tmp_path / "proof1_symbolic.json")["statements"]
    assert [row["statement"] for row in rows] == [s.text for s in (*symbolic.IDENTITIES, *symbolic.SLIPS)]
    proved = len(symbolic.IDENTITIES)
    assert [(row["any_n"], row["n_10"]) for row in rows] == [(True, True)] * proved + [(False, False)] * 4
    assert "\n       x = 0, T = 1: 11/100, 1/100, where the left side is 9/100, -1/100\n" in out
    assert out.count("where the left side is") == 4
    assert max(map(len, out.splitlines()[:-1])) <= 80 and out.endswith(
        f"Written: {tmp_path / 'proof1_symbolic.json'}\n"
    )


def test_symbolic_takes_no_network(tmp_path):
    for option in (["--network", "standard"], ["--weights", "w.npz"]):
        assert_mistake(["proof1", "--symbolic", *option, "--out", tmp_path], "leave out --network and --weights")
