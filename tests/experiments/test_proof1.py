"""The walk through Proof 1: what it measures, on logits and on a network, and what it does without a network."""

import math
from decimal import Decimal

import numpy as np
import pytest

from experiments import common
from experiments import proof1 as experiment
from minicnn.layers import Conv2D, Dense, Flatten, MaxPool2D, Sequential
from minicnn.paper import proof1
from tests.experiments.conftest import PNG, TRAINED, read_json, run

TEMPERATURES = [1, 2, 5, 10, 20, 50, 100]
PRINTED = ("printed_4", "printed_5")


def small_network():
    """Conv, pool and dense in float64 with random biases, for 8 x 8 images; scaled so that p_k is not flat."""
    rng = np.random.default_rng(3)
    shared = {"rng": rng, "dtype": np.float64}
    network = Sequential(
        conv1=Conv2D(1, 4, 3, **shared), pool1=MaxPool2D(2), flatten=Flatten(), dense1=Dense(36, 10, **shared)
    )
    for name, parameter in network.parameters().items():
        parameter.data = parameter.data * 3 if name.endswith("_W") else rng.normal(0, 0.1, parameter.shape)
    return network


def noise_images(count):
    return np.random.default_rng(4).uniform(0.05, 0.95, (count, 1, 8, 8))


@pytest.fixture(scope="module")
def equations():
    """What parts 1 to 4 find with the default seed."""
    return {
        "forms": experiment.compare_forms(np.random.default_rng(0)),
        "limit": experiment.limit_of_certainty(),
        "training_temperature": experiment.training_temperature(),
    }


@pytest.fixture(scope="module")
def found():
    """What parts 5 and 6 find on the small network for the first three of four images that it gets right."""
    network, images = small_network(), noise_images(5)
    labels = experiment.predict(network, images).argmax(axis=1)
    labels[1] = (labels[1] + 1) % 10  # passed over: misclassified
    results, moves = experiment.pixels(network, images, labels, 3, np.random.default_rng(6))
    return {"weights": "small.npz"} | results, moves


def test_compare_forms_finds_the_corrected_ones_right_and_the_printed_ones_wrong(equations):
    assert [row["T"] for row in equations["forms"]] == TEMPERATURES
    for row in equations["forms"]:
        right = [name for name in row["off"] if name not in PRINTED]
        assert len(right) == 5 and max(row["off"][name] for name in right) < 1e-12
        assert all(abs(row["sums_times_T"][name]) < 1e-14 for name in right)
        for name in PRINTED:
            stated = row["sums_stated_times_T"][name]
            assert row["sums_times_T"][name] == pytest.approx(stated, rel=1e-13, abs=0)


def test_compare_forms_is_off_by_what_the_most_confident_vector_says(equations):
    for row in equations["forms"]:
        p_k = row["largest_p_k"]
        assert p_k >= row["p_k"]
        for name in PRINTED:
            assert row["off"][name] == pytest.approx(2 * p_k / (1 - p_k), rel=1e-9) and row["off"][name] > 1


def test_limit_of_certainty_ends_where_it_should_and_float32_stops_before(equations):
    last = equations["limit"]["rows"][-1]
    assert len(last["forms"]) == 5
    for name, form in last["forms"].items():
        limit = equations["limit"]["limits"]["corrected" if name.startswith("corrected") else name]
        np.testing.assert_allclose(form, limit, atol=1e-11)
    assert last["one_minus_p_k_float32"] == 0 < last["one_minus_p_k"]
    for row in equations["limit"]["rows"]:
        assert row["forms"]["cross_entropy"][0] == pytest.approx(-row["one_minus_p_k"], rel=1e-14, abs=0)


def test_training_temperature_first_enlarges_the_gradient_and_then_the_prediction_holds(equations):
    """For nine equal rivals ratio / prediction is (1 + 9 e^-m) / (1 + 9 e^-Tm) exactly."""
    rows = equations["training_temperature"]["rows"]
    expected = [(1 + 9 * math.exp(-row["margin"])) / (1 + 9 * math.exp(-20 * row["margin"])) for row in rows]
    assert [row["ratio"] / row["predicted"] for row in rows] == pytest.approx(expected, rel=1e-12)
    assert expected[-1] == pytest.approx(1, rel=1e-7)
    ratios = [row["ratio"] for row in rows]
    assert ratios[0] > 1 and ratios == sorted(ratios, reverse=True) and ratios[-1] < 1e-100
    assert {row["one_over_T"] for row in rows} == {0.05}


def test_chain_rule_equals_the_engine(found):
    rows = found[0]["chain_rule"]
    assert [row["T"] for row in rows] == TEMPERATURES
    for row in rows:
        assert max(row["off_scaled"], row["off_plain"]) < 1e-12
        product = row["one_minus_p_k"] * row["direction"] / row["T"]
        assert row["largest_entry"] == pytest.approx(product, rel=1e-12, abs=0) and product > 1e-4
    assert abs(rows[4]["direction"] / rows[0]["direction"] - 1) > 0.01  # at the pixels the direction changes too


@pytest.mark.parametrize("T", TEMPERATURES)
def test_shared_out_is_the_gradient_without_its_saturation(T):
    """With J = 1: -1 at k, positive elsewhere, of sum 0, no matter what x_k is, and more even at a higher T."""
    x, k = np.array([Decimal(v) for v in np.random.default_rng(0).normal(0, 3, 10)]), 3
    one, tiny = np.array([[Decimal(int(i == j)) for j in range(10)] for i in range(10)]), Decimal("1e-24")
    v = experiment.shared_out(one, x, k, T)
    expected = (proof1.softmax_with_temperature(x, T) - one[k]) / proof1.saturation(x, k, T)
    others = np.arange(10) != k
    assert max(abs(v - expected)) < tiny and v[k] == -1
    assert abs(v.sum()) < tiny and min(v[others]) > 0
    higher = experiment.shared_out(one, x, k, 2 * T)[others]
    assert max(higher) < max(v[others]) and min(higher) > min(v[others])
    assert max(abs(experiment.shared_out(one, x + 7 * one[k], k, T) - v)) < tiny


def test_equation_1_holds_for_small_steps_between_kinks_and_fails_for_large_ones():
    case = small_network(), noise_images(2), np.array([1, 5])
    found, moves = experiment.equation_1(*case, np.random.default_rng(6))
    assert (found["images"], found["moves"]) == (2, 2 * 2 * 64)
    smallest, whole = found["steps"][0], found["steps"][-1]
    assert smallest["share_close"] > 0.98 and smallest["off"] < 1e-3 and smallest["rank"] > 0.99
    assert whole["share_close"] < 0.8 and whole["off"] > 0.02 and whole["switches"] > 100 * smallest["switches"]
    for m in moves:
        # ten times the step, a hundred times the curvature
        _, shorter, longer, _, _ = m["linear"] - m["predicted"]
        seen = m["predicted"][1] != 0  # a pixel that wins no pool has no gradient
        assert seen.mean() > 0.9
        assert np.median(longer[seen] / shorter[seen]) == pytest.approx(100, rel=0.05)


def test_equation_1_picks_pixels_with_room_by_gradient_times_step(monkeypatch):
    monkeypatch.setattr(experiment, "PICKED", 10)
    image = noise_images(1)
    image[0, 0, :4] = 1.0
    found, (m,) = experiment.equation_1(small_network(), image, np.array([1]), np.random.default_rng(0))
    best = set(np.argsort(-m["actual"][-1, 0])[:10])
    for name, scores in ("gradient", m["gradient"]), ("predicted", m["predicted"][-1, 0]):
        picked = np.argsort(-scores)[:10]
        no_room = (m["value"][picked] > 0.9).sum()
        assert found["picks"][name] == {"no_room": no_room, "among_best": len(best & set(picked))}
        assert (no_room == 0) == (name == "predicted")


def test_step_row_fails_for_any_step_where_pools_tie():
    """A flat image: raising a pixel switches pools at once, lowering it does not move their maximum at all."""
    flat = np.full((1, 8, 8), 0.5)
    noisy = flat + np.random.default_rng(7).uniform(0, 0.01, flat.shape)
    share = []
    for image in (flat, noisy):
        moves = [experiment.one_pixel_moves(small_network(), image, 1, (1e-7,))]
        share.append(experiment.step_row(moves, 0)["share_close"])
    assert share[0] < 0.6 and share[1] > 0.98


def test_room_row_has_no_room_at_the_maximum():
    image = noise_images(1)[0]
    image[0, :4] = 1.0
    moves = experiment.one_pixel_moves(small_network(), image, 1)
    assert np.count_nonzero(moves["gradient"][:32]) > 16
    for name in ("step", "predicted", "linear", "actual"):
        assert not moves[name][:, 0, :32].any()
        assert moves[name][-1, 1, :32].any() and moves[name][-1, 0, 32:].any()
    room = experiment.room_row([moves], 0.9, 1.0)
    assert room["pixels"] >= 32 and room["gradient"] > room["actual"]
    assert experiment.room_row([moves], -1.0, -0.5)["gradient"] is None


def test_correctly_classified_passes_over_the_others(found):
    assert found[0]["images"] == [0, 2, 3]
    network, images = small_network(), noise_images(2)
    with pytest.raises(common.UsageError, match="classifies 0 test images correctly: --images can be no more"):
        wrong = (experiment.predict(network, images).argmax(axis=1) + 1) % 10
        experiment.correctly_classified(network, images, wrong, 1)


def test_table_keeps_its_columns_apart():
    rows = [{"by": "a label that is long", "n": [1, 2], "x": 0.25}, {"by": "b", "n": [-1, 10], "x": None}]
    assert experiment.table(": {by} | a long head: {n[0]} | n: {n[1]:.1f} | |x|: {x:.0%}", rows).splitlines() == [
        "                         a long head     n  |x|",
        "   a label that is long            1   2.0  25%",
        "   b                              -1  10.0    -",
    ]


def test_text_shows_each_figure_under_its_name(equations, found):
    """Every table of the walk, from results in which every figure is another."""
    text = experiment.equations_text(equations) + experiment.pixels_text(found[0])
    row, steps = equations["forms"][2], found[0]["equation_1"]["steps"]
    names = ("printed_4", "corrected_4", "printed_5", "corrected_5", "cross_entropy", "engine_probability")
    line = next(line for line in text.splitlines() if line.startswith("   5    ")).split()
    assert line == ["5", *(f"{row['off'][name]:.1e}" for name in (*names, "engine_loss"))]
    line = next(line for line in text.splitlines() if line.startswith("   0.001 ")).split()
    shown = [f"{steps[1][name]:.1e}" for name in ("off", "curvature", "switches")]
    shares = [f"{steps[1][name]:.0%}" for name in ("share_close", "share_wrong_sign")]
    assert line == ["0.001", *shown, *shares, f"{steps[1]['rank']:.2f}"]


def test_text_defines_its_symbols_before_it_uses_them(equations, found):
    text = experiment.equations_text(equations) + experiment.pixels_text(found[0])
    definitions = {
        "k": "k is the target",
        "x": "x      the n logits",
        "T": "T      the temperature, T > 0",
        "p": "p      softmax(x / T)",
        "d_ik": "d_ik   1 if i = k, else 0",
        "S'": "f', S' the derivatives of f and S by x_i: f' = d_ik f / T and S' = exp(x_i / T) / T",
        "u": "u is a vector of n logits",
        "e_k": "e_k is 1 at k and 0 elsewhere",
        "m": "m = u_k - max_{j != k} u_j",
        "J_u": "J_u = du/d(pixels)",
    }
    for symbol, definition in definitions.items():
        before = text[: text.index(definition)]
        assert symbol not in before.translate(str.maketrans("(),|", "    ")).split(), symbol
    assert "x is the image, and x[m][n] the pixel in row m and column n" in text


def test_text_has_printed_before_corrected(equations):
    text = experiment.equations_text(equations)
    for equation in ("loss", "derivative_4", "derivative_5"):
        assert 0 < text.index(f"   {equation}_printed\n") < text.index(f"   {equation}_corrected\n")


def test_draw_slip_shows_the_forms_and_the_truth(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(common, "save_figure", lambda path, figure: kept.append(figure))
    experiment.draw_slip(tmp_path / "proof1.png")
    left, right = kept[0].axes
    (near_0,) = right.child_axes
    assert left.get_ylim() == right.get_ylim()
    labels = [t.get_text() for t in left.get_legend().get_texts()]
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


def test_draw_equation_1_tells_the_wrong_signs(found, tmp_path, monkeypatch):
    kept, moves = [], found[1]
    monkeypatch.setattr(common, "save_figure", lambda path, figure: kept.append(figure))
    experiment.draw_equation_1(moves, tmp_path / "equation1.png")
    for axes, i in zip(kept[0].axes, (2, 3, 4), strict=True):
        signs = np.concatenate([(np.sign(m["predicted"][i]) * np.sign(m["actual"][i])).reshape(-1) for m in moves])
        assert [len(line.get_xdata()) for line in axes.lines[:2]] == [(signs > 0).sum(), (signs < 0).sum()]


def assert_first_four_parts(results, out, folder, name="standard"):
    assert {"forms", "limit", "training_temperature", "seed", "command"} <= results.keys()
    assert not {"chain_rule", "equation_1", "weights"} & results.keys()
    assert f"Written: {folder / 'proof1.png'}, {folder / f'proof1_{name}.json'}\n" in out
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
    closing = out[out.index("Written: ") :]
    assert "Parts 5 and 6 need a trained network" in closing and missing in closing
    assert closing.endswith("run at once:\n   python -m experiments.proof1 --dataset mnist\n") == committed


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


def test_walk_with_a_network_writes_all_parts(trained, tmp_path):
    code, out, err = run("proof1", "--weights", trained[0] / f"{TRAINED}.npz", "--images", 1, "--out", tmp_path)
    results = read_json(tmp_path / f"proof1_{TRAINED}.json")
    assert (code, err) == (0, "")
    assert {"forms", "limit", "training_temperature", "weights", "chain_rule", "equation_1"} <= results.keys()
    assert "parts_5_and_6_missing" not in results and len(results["images"]) == 1
    files = [tmp_path / name for name in ("proof1.png", f"equation1_{TRAINED}.png", f"proof1_{TRAINED}.json")]
    assert results["trained_at"] == 1
    assert out.endswith(f"Written: {', '.join(map(str, files))}\n")
    assert all(path.read_bytes().startswith(PNG) for path in files[:2])
