"""experiments/masking.py: each part asks what it says, and the command shows and writes all of them.

Most tests take a network of random features: its last layer alone is fitted, and scaled so that the label's logit is
typically 1 above the next. Multiplied by 1,000 it is so saturated that plain float32 sees nothing of its gradient.
"""

import argparse
import json

import numpy as np
import pytest

from experiments import common, masking
from minicnn import data
from minicnn.layers import Sequential
from minicnn.paper import attacks
from minicnn.paper import masking as numbers
from minicnn.paper.networks import LAST_LAYER, NETWORKS, paper_cnn, rescaled
from minicnn.paper.saliency import saliency_maps
from minicnn.paper.statistics import Rate
from minicnn.training import correct, predict
from minicnn.weights import get_weights, load_npz, save_weights, set_weights
from tests.experiments.conftest import PNG, assert_mistake, read_json, run, succeed

IMAGES = 6


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def base(digits):
    network = paper_cnn(seed=0, ties="all")
    features = Sequential(**{name: layer for name, layer in network.layers.items() if name != LAST_LAYER})
    x = predict(features, digits.train_images[:500]).astype(np.float64)
    y = np.eye(10)[digits.train_labels[:500]]
    weights = np.linalg.solve(x.T @ x + 1e-3 * np.trace(x.T @ x) / len(x.T) * np.eye(len(x.T)), x.T @ y)
    gap = np.median(np.diff(np.sort(x @ weights, axis=1)[:, -2:]))
    return set_weights(network, get_weights(network) | {f"{LAST_LAYER}_W": weights / gap})


@pytest.fixture(scope="module")
def dataset(base, digits):
    """Digits: few to train on; to test on, the first that the network is right about by a gap of more than a half."""
    logits = predict(base, digits.test_images[:60])
    gap = np.diff(np.sort(logits, axis=1)[:, -2:])[:, 0]
    chosen = np.flatnonzero((logits.argmax(axis=1) == digits.test_labels[:60]) & (gap > 0.5))[:IMAGES]
    return digits._replace(
        train_images=digits.train_images[:64],
        train_labels=digits.train_labels[:64],
        test_images=digits.test_images[chosen],
        test_labels=digits.test_labels[chosen],
    )


@pytest.fixture
def told(tmp_path):
    """A function that makes a Study of settings for the attacks."""

    def study(**setting):
        setting = attacks.Setting(**{"limit": 20} | setting)
        return masking.Study(setting, trained_T=20.0, seed=0, count=None, store=common.Store(tmp_path / "parts"))

    return study


def few_curves(network, reference, images, labels, study):
    """Curves without attacks: one success of two from the tenth move on."""
    names = set(masking.CURVES) - ({"transfer"} if reference is network else set())
    return {name: {"attacked": 2, "succeeded": [0] * 10 + [1] * 775} for name in names}


def test_parts_are_described_once_and_in_order():
    expected = "arithmetics control gradient_budget two_by_two_by_two success_by_pixels verdict cost"
    assert " ".join(masking.PARTS) == expected
    for number, (name, part) in enumerate(masking.PARTS.items(), 1):
        assert part.name == name and part.title.startswith(f"{number}. ") and set(part.needs) <= set(NETWORKS)


def test_arithmetics_attacks_each_variant_as_its_name_says(base, dataset, told):
    """At logits that float32 half loses: each variant does what its own map says."""
    network, (images, labels) = rescaled(base, 30), (dataset.test_images, dataset.test_labels)
    exact = saliency_maps(rescaled(network, dtype=np.float64), images, labels, arithmetic="plain").maps
    assert exact.dtype == np.float64
    found = masking.arithmetics({"standard": network}, dataset, told())["standard"]["1"]
    for name, maps in (
        ("plain_float32", saliency_maps(network, images, labels, arithmetic="plain").maps),
        ("plain_float64", exact),
        ("plain_float32_at_T", saliency_maps(network, images, labels, T=20.0, arithmetic="plain").maps),
    ):
        order = np.argsort(-maps.reshape(IMAGES, -1), axis=1, kind="stable")
        ranks = np.argsort(order, axis=1)  # Algorithm 3 on a map above 0 in the same order is Algorithm 1
        replayed = numbers.follow_maps(network, images, labels, order.shape[1] - ranks, told().setting)["moves"]
        assert found[name]["succeeded"] == (replayed > 0).sum() > 0
        assert found[name]["mean_moves_of_successes"] == pytest.approx(replayed[replayed > 0].mean())
    assert len({outcome["mean_moves_of_successes"] for outcome in found.values()}) > 2


def test_control_changes_no_decision_at_any_scale(base, dataset, told):
    rows = masking.control({"standard": base}, dataset, told(limit=2))
    assert [row["s"] for row in rows] == [1, 2, 5, 10, 15, 20, 50]
    assert all(row["decisions_that_differ"] == 0 and row["closest_call"] is None for row in rows)
    assert all(row["decisions_compared"] == row["plain"]["attacked"] == IMAGES for row in rows)


def test_control_counts_a_changed_decision(base, dataset, told, monkeypatch):
    negative = rescaled(base, -1)
    monkeypatch.setattr(masking, "rescaled", lambda network, s: negative)
    row = masking.control({"standard": base}, dataset, told(limit=1))[0]
    assert row["decisions_that_differ"] == IMAGES and row["closest_call"] > 0


def test_control_compares_all_test_images(base, digits, told, monkeypatch):
    monkeypatch.setattr(masking, "SCALES", (2,))
    few = digits._replace(test_images=digits.test_images[:120], test_labels=digits.test_labels[:120])
    (row,) = masking.control({"standard": base}, few, told(limit=0))
    assert row["decisions_compared"] == 120 and row["plain"]["images"] == masking.ATTACKED["digits"]


def test_budget_adds_measurement_and_prediction_and_keeps_the_sizes(base, dataset, told, monkeypatch):
    network, reference = rescaled(base, 6), rescaled(base, 2)
    sample = dataset.test_images, dataset.test_labels

    def budget(T, reference_T=1.0):
        store = told().store
        return masking.budget(network, reference, *sample, T=T, reference_T=reference_T, trained_T=20.0, store=store)

    at_1, at_20 = budget(1.0), budget(20.0)
    for T, found in (1, at_1), (20, at_20):
        assert (found["T"], found["reference_T"], found["images"]) == (T, 1, IMAGES)
        assert found["measured"]["images"] == IMAGES and found["measured"]["largest_difference"] < 2e-5
    assert at_1["prediction"]["T"] == 20
    assert "prediction" not in at_20 and "prediction" not in budget(1.0, reference_T=20.0)
    monkeypatch.setattr(numbers, "map_sizes", None)
    again = budget(1.0)
    assert masking.without_images(again) == masking.without_images(at_1)
    assert np.array_equal(again["by_image"]["ratio"], at_1["by_image"]["ratio"])


def test_budget_without_an_image_to_compare_is_a_usage_error(base, dataset, told):
    wrong, told = (dataset.test_labels + 1) % 10, {"reference_T": 1.0, "trained_T": 20.0, "store": told().store}
    with pytest.raises(common.UsageError, match="of 6 images both networks classify none correctly"):
        masking.budget(base, base, dataset.test_images, wrong, T=1.0, **told)


def test_gradient_budget_needs_a_network_beside_standard(base, dataset, told):
    with pytest.raises(common.UsageError, match="name temperature or distilled beside it"):
        masking.gradient_budget({"standard": base}, dataset, told())


def test_two_by_two_by_two_has_eight_rows_with_four_networks(base, dataset, told):
    trained = {name: rescaled(base, s) for s, name in enumerate(NETWORKS, 20)}
    rows = masking.two_by_two_by_two(trained, dataset, told(limit=3))
    assert [(r["train_T"], r["distilled"], r["test_T"]) for r in rows] == [
        (train, distilled, test) for train in (1, 20) for distilled in (False, True) for test in (1, 20)
    ]
    at_1, at_20 = (next(r for r in rows if r["network"] == "distilled" and r["test_T"] == T) for T in (1, 20))
    setting = attacks.Setting("plain", T=20, limit=3)
    direct = attacks.attack(trained["distilled"], dataset.test_images, dataset.test_labels, "1", setting)
    assert (at_20["plain"]["succeeded"], at_20["plain"]["forwards"]) == (direct.succeeded.sum(), direct.forwards)
    assert at_1["plain"] != at_20["plain"]
    del trained["standard-distilled"]
    assert len(masking.two_by_two_by_two(trained, dataset, told(limit=3))) == 6


def test_curves_count_successes_up_to_each_move(base, dataset, told):
    network, reference = rescaled(base, 10), paper_cnn(seed=1, ties="all")
    sample = images, labels = dataset.test_images, dataset.test_labels
    curves = masking.curves(network, reference, *sample, told(), pixels=40)
    assert set(curves) == set(masking.CURVES)
    for curve in curves.values():
        counts = np.array(curve["succeeded"])
        assert curve["attacked"] == IMAGES and len(counts) == 41
        assert counts[0] == 0 and (np.diff(counts) >= 0).all() and counts[-1] <= IMAGES
    short = attacks.attack(network, images, labels, "1", attacks.Setting("scaled", limit=20))
    assert curves["algorithm_1_scaled"]["succeeded"][20] == short.succeeded.sum() > 0
    maps = saliency_maps(reference, images, labels).maps
    moves = numbers.follow_maps(network, images, labels, maps, attacks.Setting(limit=40))["moves"]
    assert curves["transfer"]["succeeded"][-1] == (moves > 0).sum()


def test_curves_may_move_every_pixel_and_nothing_transfers_to_itself(base, dataset, told):
    one = dataset.test_images[:1], dataset.test_labels[:1]
    curves = masking.curves(rescaled(base, 10), base, *one, told())
    assert all(len(curve["succeeded"]) == 785 for curve in curves.values())
    assert "transfer" not in masking.curves(base, base, *one, told(), pixels=1)


def test_verdict_judges_the_curves_at_the_limit_and_at_the_end(base, dataset, told, monkeypatch):
    monkeypatch.setattr(masking, "curves", few_curves)
    monkeypatch.setattr(numbers, "judge", lambda **rates: rates)
    trained = {"standard": base, "temperature": rescaled(base, 20)}
    found = masking.verdict(trained, dataset, told(limit=3))
    setting = attacks.Setting("plain", limit=3)
    sample = dataset.test_images, dataset.test_labels
    direct = attacks.attack(trained["temperature"], *sample, numbers.ITERATIVE, setting)
    none, one = Rate(0, 2), Rate(1, 2)
    assert found["temperature"]["plain"] == {
        "one_step": none,
        "iterative": Rate(int(direct.succeeded.sum()), IMAGES),
        "transfer": none,
        "random": none,
        "unbounded": one,
    }
    assert found["standard"]["scaled"]["transfer"] is None
    assert masking.verdict(trained, dataset, told(limit=10))["temperature"]["scaled"]["one_step"] == one


def test_cost_is_of_the_first_images_classified_correctly(base, dataset, told, monkeypatch):
    monkeypatch.setattr(masking, "COST_IMAGES", 1)
    monkeypatch.setattr(numbers, "COSTS", {name: numbers.COSTS[name] for name in ("1", "2")})
    wrong = dataset.test_labels.copy()
    wrong[0] = (wrong[0] + 1) % 10
    found = masking.cost({"standard": rescaled(base, 10)}, dataset._replace(test_labels=wrong), told(limit=1))
    assert {name: row["forwards_at_most"] for name, row in found.items()} == {"1": 2, "2": 1570}
    assert all(row["images"] == 1 and 0 < row["forwards"] <= row["forwards_at_most"] for row in found.values())


def test_study_prints_and_draws_every_part(base, dataset, told, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(numbers, "COSTS", {"1": numbers.COSTS["1"]})
    monkeypatch.setattr(masking, "curves", few_curves)
    trained = {name: rescaled(base, 10 * s) for s, name in enumerate(("standard", "temperature"), 1)}
    results = dict(masking.study(masking.PARTS, trained, dataset, told(limit=1), tmp_path))
    assert list(results) == list(masking.PARTS)
    assert set(results["arithmetics"]) == {"standard", "temperature"}
    assert set(results["gradient_budget"]["temperature"]) == {"test_T_1", "test_T_20"}
    shown = [masking.section(name, figures, tmp_path) for name, figures in results.items()]
    printed = capsys.readouterr().out
    assert all(title in printed and text in printed for title, text, _ in shown)
    drawn = {path for _, _, pictures in shown for _, path in pictures}
    assert drawn == set(tmp_path.glob("*.png")) and len(drawn) == 4
    assert all(path.read_bytes().startswith(PNG) for path in drawn)
    rows = (tmp_path / "masking_budget.csv").read_text().splitlines()
    assert rows[0] == "network,T,image,ratio,temperature,jacobian,saturation" and len(rows) == 1 + 2 * IMAGES
    common.write_json(tmp_path / "results.json", masking.without_images(results))
    assert "by_image" not in (tmp_path / "results.json").read_text()


def test_study_of_another_attack_temperature_predicts_nothing_and_is_drawn(base, dataset, told, tmp_path):
    trained = {"standard": base, "distilled": rescaled(base, 10)}
    ((_, figures),) = masking.study(["gradient_budget"], trained, dataset, told(T=2.0), tmp_path)
    assert [b["T"] for b in figures["distilled"].values()] == [2, 20]
    assert all(b["reference_T"] == 2 and "prediction" not in b for b in figures["distilled"].values())
    assert (tmp_path / "masking_gradient_budget.png").exists()


def test_study_refuses_a_network_that_is_never_right(base, dataset, told, tmp_path):
    trained = {"standard": base, "distilled": rescaled(base, -1)}
    with pytest.raises(common.UsageError, match="distilled classifies none of the first 6 test images"):
        next(masking.study(["control"], trained, dataset, told(), tmp_path))


def test_find_or_train_finds_some_and_trains_the_others(base, dataset, tmp_path, capsys):
    """The one that the paper has not: `distilled` at T = 1 throughout, on the labels of `standard`."""
    for name in ("temperature", "distilled"):
        save_weights(base, tmp_path / f"{name}.npz")
    protocol = common.Protocol("digits", T=20.0, epochs=1, batch=32)
    found = masking.find_or_train(["two_by_two_by_two"], dataset, protocol, tmp_path, "first")
    assert list(found) == list(NETWORKS) and found["standard"].layers["pool1"].ties == "first"
    assert np.array_equal(correct(found["temperature"], dataset.test_images, dataset.test_labels), np.ones(IMAGES))
    printed = capsys.readouterr().out
    assert f"temperature: {tmp_path / 'temperature.npz'}" in printed and "standard: to be trained, 1 epochs" in printed
    recipe = json.loads(str(load_npz(tmp_path / "standard-distilled.checkpoint.npz")["fingerprint"]))
    assert recipe["temperature"] == 1.0
    assert recipe["learning_rate"] == protocol.recipe("distilled").learning_rate
    again = masking.find_or_train(["control"], dataset, protocol, tmp_path, "all")
    assert list(again) == ["standard"]
    assert np.array_equal(get_weights(again["standard"])["conv1_W"], get_weights(found["standard"])["conv1_W"])


def test_command_writes_the_parts_that_it_is_asked_for(base, tmp_path, monkeypatch):
    loaded, load = [], common.load_network
    monkeypatch.setattr(common, "load_network", lambda *a, **named: loaded.append((*a, named)) or load(*a, **named))
    weights = {name: f"{tmp_path / name}.npz" for name in ("standard", "distilled")}
    for name, path in weights.items():
        save_weights(rescaled(base, 10 if name == "standard" else 20), path)
    named = [f"{name}={path}" for name, path in weights.items()]
    options = ("--images", "8", "--limit", "1", "--ties", "first", "--out", tmp_path, "--weights", *named)
    said = succeed("masking", *options, "--parts", "gradient_budget", "two_by_two_by_two")
    assert [(str(path), *others) for path, *others in loaded] == [
        (path, "cpu", "first", {"T": T}) for path, T in zip(weights.values(), (1, 20), strict=True)
    ]
    results = read_json(tmp_path / "masking.json")
    assert set(results) & set(masking.PARTS) == {"gradient_budget", "two_by_two_by_two"}
    assert all(masking.PARTS[name].title in said for name in ("gradient_budget", "two_by_two_by_two"))
    assert set(results["weights"]) == set(weights) and results["ties"] == "first"
    outcomes = [row["plain"] for row in results["two_by_two_by_two"]]
    assert all(o["images"] == 8 and o["moves"] == o["attacked"] > 0 for o in outcomes) and len(outcomes) == 4


def test_find_or_train_takes_no_network_of_another_temperature(base, dataset, tmp_path, monkeypatch):
    """Not that of the same name, trained at 20, where 5 is asked for; and next time its own."""
    for name in ("standard", "temperature"):
        save_weights(base, tmp_path / f"{name}.npz", 20 if name == "temperature" else 1)
    protocol, trained = common.Protocol("digits", T=5.0, epochs=1, batch=32), []

    def train(name, dataset, protocol, folder):
        trained.append(name)
        save_weights(base, folder / f"{protocol.file_name(name)}.npz", protocol.recipe(name).temperature)

    monkeypatch.setattr(common, "train", train)
    monkeypatch.setitem(masking.PARTS, "few", masking.PARTS["control"]._replace(needs=["standard", "temperature"]))
    for _ in range(2):
        found = masking.find_or_train(["few"], dataset, protocol, tmp_path, "all")
        assert list(found) == ["standard", "temperature"] and trained == ["temperature"]
    assert (tmp_path / "temperature-T5.npz").exists()


def test_command_refuses_networks_of_another_temperature(base, tmp_path):
    named = []
    for name, T in (("standard", 1), ("temperature", 20)):
        save_weights(base, tmp_path / f"{name}.npz", T)
        (tmp_path / f"{name}.csv").write_text("epoch\n1\n")
        named.append(f"{name}={tmp_path / name}.npz")
    (tmp_path / "distilled.csv").write_text("epoch\n1\n")
    options, said = ("--temperature", 5, "--out", tmp_path / "out"), "temperature.npz was trained at T = 20, not at 5"
    assert_mistake(("masking", "--weights", *named, *options), said)
    assert_mistake(("reproduce", "--trained", tmp_path, *options), said)


def test_command_help_names_every_part():
    code, said, _ = run("masking", "--help")
    assert code == 0 and all(part.name in said and part.title in said for part in masking.PARTS.values())


def test_command_needs_a_standard_network(tmp_path):
    assert_mistake(("masking", "--out", tmp_path, "--weights", "temperature=t.npz"), "standard=FILE.npz")
    with pytest.raises(argparse.ArgumentTypeError, match="NAME=FILE"):
        masking.named_weights("teacher=file.npz")
