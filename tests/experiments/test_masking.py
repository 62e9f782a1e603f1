"""experiments/masking.py: each part asks what it says, and the command shows and writes all of them.

Most tests take `base`, a network of random features (conftest.py).
"""

import argparse
import json

import numpy as np
import pytest

from experiments import common, curves, masking, report
from experiments.train import Protocol, train
from minicnn.paper import attacks
from minicnn.paper import masking as numbers
from minicnn.paper.networks import NETWORKS, rescaled
from minicnn.paper.saliency import saliency_maps
from minicnn.training import correct
from minicnn.weights import get_weights, load_npz, save_weights
from tests.experiments.conftest import IMAGES, PNG, assert_mistake, read_json, run, succeed


@pytest.fixture
def no_attacks(monkeypatch):
    """Every attack succeeds on an image with twice as many moves as on the one before, by its place among ATTACKS."""

    def never_run(place):
        return lambda study, network, source: (place + 1.0) * 2 ** np.arange(len(study.sample.labels))

    for place, (name, attack) in enumerate(curves.ATTACKS.items()):
        monkeypatch.setitem(curves.ATTACKS, name, attack._replace(moves=never_run(place)))


def test_parts_are_described_once_and_in_order():
    expected = "arithmetics control gradient_budget two_by_two_by_two success_by_pixels stronger_attacks verdict cost"
    assert " ".join(masking.PARTS) == expected
    for number, (name, part) in enumerate(masking.PARTS.items(), 1):
        assert part.name == name and part.title.startswith(f"{number}. ") and set(part.needs) <= set(NETWORKS)


def test_arithmetics_attacks_each_variant_as_its_name_says(base, dataset, told):
    """At logits that float32 half loses: each variant does what its own map says."""
    network, (images, labels) = rescaled(base, 30), (dataset.test_images, dataset.test_labels)
    exact = saliency_maps(rescaled(network, dtype=np.float64), images, labels, arithmetic="plain").maps
    assert exact.dtype == np.float64
    found = masking.arithmetics({"standard": network}, told())["standard"]["1"]
    for name, maps in (
        ("plain_float32", saliency_maps(network, images, labels, arithmetic="plain").maps),
        ("plain_float64", exact),
        ("plain_float32_at_T", saliency_maps(network, images, labels, T=20.0, arithmetic="plain").maps),
    ):
        order = np.argsort(-maps.reshape(IMAGES, -1), axis=1, kind="stable")
        ranks = np.argsort(order, axis=1)  # Algorithm 3 on a map above 0 in the same order is Algorithm 1
        same_order = (order.shape[1] - ranks).reshape(images.shape)
        replayed = attacks.attack(network, images, labels, "3", told().setting, maps=lambda *_, m=same_order: m)
        assert found[name]["succeeded"] == replayed.succeeded.sum() > 0
        moves = replayed.moves[replayed.succeeded]
        assert found[name]["mean_moves_of_successes"] == pytest.approx(moves.mean())
    assert len({outcome["mean_moves_of_successes"] for outcome in found.values()}) > 2


def test_control_changes_no_decision_at_any_scale(base, told):
    rows = masking.control({"standard": base}, told(limit=2))
    assert [row["s"] for row in rows] == [1, 2, 5, 10, 15, 20, 50]
    assert all(row["decisions_that_differ"] == 0 and row["closest_call"] is None for row in rows)
    assert all(row["decisions_compared"] == row["plain"]["attacked"] == IMAGES for row in rows)


def test_control_counts_a_changed_decision(base, told, monkeypatch):
    negative = rescaled(base, -1)
    monkeypatch.setattr(masking, "rescaled", lambda network, s: negative)
    row = masking.control({"standard": base}, told(limit=1))[0]
    assert row["decisions_that_differ"] == IMAGES and row["closest_call"] > 0


def test_control_compares_all_test_images(base, digits, told, monkeypatch):
    monkeypatch.setattr(masking, "SCALES", (2,))
    few = digits._replace(test_images=digits.test_images[:120], test_labels=digits.test_labels[:120])
    (row,) = masking.control({"standard": base}, told(few, limit=0))
    assert row["decisions_compared"] == 120 and row["plain"]["images"] == masking.ATTACKED["digits"]


def test_gradient_budget_needs_a_network_beside_standard(base, told, tmp_path):
    """Said before another part is measured."""
    with pytest.raises(common.UsageError, match="name temperature or distilled beside it"):
        next(masking.study(["control", "gradient_budget"], {"standard": base}, told(), tmp_path))


def test_two_by_two_by_two_has_eight_rows_with_four_networks(base, dataset, told):
    trained = {name: rescaled(base, s) for s, name in enumerate(NETWORKS, 20)}
    rows = masking.two_by_two_by_two(trained, told(limit=3))
    assert [(r["train_T"], r["distilled"], r["test_T"]) for r in rows] == [
        (train, distilled, test) for train in (1, 20) for distilled in (False, True) for test in (1, 20)
    ]
    at_1, at_20 = (next(r for r in rows if r["network"] == "distilled" and r["test_T"] == T) for T in (1, 20))
    setting = attacks.Setting("plain", T=20, limit=3)
    direct = attacks.attack(trained["distilled"], dataset.test_images, dataset.test_labels, "1", setting)
    assert (at_20["plain"]["succeeded"], at_20["plain"]["forwards"]) == (direct.succeeded.sum(), direct.forwards)
    assert at_1["plain"] != at_20["plain"]
    del trained["standard-distilled"]
    assert len(masking.two_by_two_by_two(trained, told(limit=3))) == 6


def test_success_by_pixels_is_that_of_the_attacks_on_one_map(base, told, no_attacks):
    found = masking.success_by_pixels({"standard": base, "temperature": rescaled(base, 2)}, told())
    assert list(found) == ["standard", "temperature"] and list(found["standard"]) == list(curves.ONE_MAP)
    first = 1 + list(curves.ATTACKS).index("algorithm_1_plain")
    curve = found["standard"]["algorithm_1_plain"]["succeeded"]
    assert len(curve) == 785 and curve[first - 1] == 0 and curve[2 * first] == 2 and curve[-1] == IMAGES


def test_stronger_attacks_tells_the_best_for_each_image(base, told, no_attacks, monkeypatch):
    trades = curves.ATTACKS["jsma"]._replace(moves=lambda *_: np.array([1.0, 1, 1, np.inf, np.inf, np.inf]))
    monkeypatch.setitem(curves.ATTACKS, "jsma", trades)
    found = masking.stronger_attacks({"standard": base}, told(limit=8))["standard"]
    assert list(found) == [*curves.STRONGER, "best"]
    assert found["algorithm_1_plain"] == {"attacked": IMAGES, "succeeded": [0, 1, 2, 2, 3, 3, 3, 3, 4], "median": 6}
    assert found["jsma"] == {"attacked": IMAGES, "succeeded": [0] + 8 * [3], "median": None}
    assert found["best"] == {"attacked": IMAGES, "succeeded": [0] + 7 * [3] + [4], "median": 4.5}


def test_stronger_attacks_are_told_at_the_limit_where_it_is_below_20(base, told, no_attacks):
    found = masking.stronger_attacks({"standard": base}, told(limit=2))
    told_of = f"Within 2 moves the best of all finds, of the images attacked: standard {2 / IMAGES:.1%}."
    assert curves.tell_stronger(found) == told_of
    found = masking.stronger_attacks({"standard": base}, told(limit=30))
    assert curves.tell_stronger(found).startswith("Within 20 moves ")


def test_verdict_judges_each_arithmetic_by_its_own_attacks(base, told, no_attacks, monkeypatch):
    monkeypatch.setattr(numbers, "judge", lambda *told: {"told": told})
    found = masking.verdict({"standard": base, "temperature": rescaled(base, 20)}, told(limit=9))
    moves = {name: (place + 1.0) * 2 ** np.arange(IMAGES) for place, name in enumerate(curves.ATTACKS)}
    for arithmetic in attacks.ARITHMETICS:
        iterative, rivals, limit = found["temperature"][arithmetic]["told"]
        assert limit == 9 and np.array_equal(iterative, moves[f"iterative_{arithmetic}"])
        named = {"one step": f"algorithm_3_{arithmetic}", "Sparse-RS": "sparse_rs", "random search": "random_search"}
        assert set(rivals) == {*named, "transfer"}
        assert all(np.array_equal(rivals[rival], moves[name]) for rival, name in named.items())
    _, alone, _ = masking.verdict({"standard": base}, told(limit=9))["standard"]["plain"]["told"]
    assert "transfer" not in alone


def test_verdict_tells_where_what_the_gradient_misses_is_saturated(base, told, no_attacks, monkeypatch):
    """Sparse-RS succeeds on every image at once, the iterative attack on half; p_k is 1 on every other image."""
    monkeypatch.setattr(numbers, "saturated", lambda *_: np.arange(IMAGES) % 2 == 1)
    for name, moves in ("sparse_rs", np.ones(IMAGES)), ("iterative_plain", np.array([1, 9, 1, 9, 9, 1])):
        monkeypatch.setitem(curves.ATTACKS, name, curves.ATTACKS[name]._replace(moves=lambda *_, m=moves: m))
    found = masking.verdict({"standard": base}, told(limit=8))["standard"]
    plain = found["plain"]
    assert (plain["missed"], plain["missed_saturated"], plain["saturated"]) == (3, 2, 3)
    assert "missed" not in found["scaled"]
    text = " ".join(str(masking.describe_verdict({"standard": found})).split())
    assert "Sparse-RS finds 3 that it misses; on 2 of these p_k is 1 in float32, as on 3 of all 6" in text


def test_cost_is_of_the_first_images_classified_correctly(base, dataset, told, monkeypatch):
    monkeypatch.setattr(masking, "COST_IMAGES", 1)
    monkeypatch.setattr(numbers, "COSTS", {name: numbers.COSTS[name] for name in ("1", "2")})
    wrong = dataset.test_labels.copy()
    wrong[0] = (wrong[0] + 1) % 10
    found = masking.cost({"standard": rescaled(base, 10)}, told(dataset._replace(test_labels=wrong), limit=1))
    assert {name: row["forwards_at_most"] for name, row in found.items()} == {"1": 2, "2": 1570}
    assert all(row["images"] == 1 and 0 < row["forwards"] <= row["forwards_at_most"] for row in found.values())


def test_study_prints_and_draws_every_part(base, told, tmp_path, capsys, monkeypatch, no_attacks):
    monkeypatch.setattr(numbers, "COSTS", {"1": numbers.COSTS["1"]})
    trained = {name: rescaled(base, 10 * s) for s, name in enumerate(("standard", "temperature"), 1)}
    results = dict(masking.study(masking.PARTS, trained, told(limit=1), tmp_path))
    assert list(results) == list(masking.PARTS)
    assert set(results["arithmetics"]) == {"standard", "temperature"}
    assert set(results["gradient_budget"]["temperature"]) == {"test_T_1", "test_T_20"}
    shown = [masking.section(name, figures, tmp_path) for name, figures in results.items()]
    printed = capsys.readouterr().out
    assert all(section.heading in printed and str(section.whole()) in printed for section in shown)
    assert max(map(len, printed.splitlines())) <= report.WIDTH
    drawn = {part.path for section in shown for part in section.whole() if isinstance(part, report.Picture)}
    assert drawn == set(tmp_path.glob("*.png")) and len(drawn) == 5
    assert all(path.read_bytes().startswith(PNG) for path in drawn)
    rows = (tmp_path / "masking_budget.csv").read_text().splitlines()
    assert rows[0] == "network,T,image,ratio,temperature,jacobian,saturation" and len(rows) == 1 + 2 * IMAGES
    common.write_json(tmp_path / "results.json", masking.without_images(results))
    assert "by_image" not in (tmp_path / "results.json").read_text()


def test_study_of_another_attack_temperature_predicts_nothing_and_is_drawn(base, told, tmp_path):
    trained = {"standard": base, "distilled": rescaled(base, 10)}
    ((_, figures),) = masking.study(["gradient_budget"], trained, told(T=2.0), tmp_path)
    assert [b["T"] for b in figures["distilled"].values()] == [2, 20]
    assert all(b["reference_T"] == 2 and "prediction" not in b for b in figures["distilled"].values())
    assert (tmp_path / "masking_gradient_budget.png").exists()


def test_study_refuses_a_network_that_is_never_right(base, told, tmp_path):
    trained = {"standard": base, "distilled": rescaled(base, -1)}
    with pytest.raises(common.UsageError, match="distilled classifies none of 6 test images"):
        next(masking.study(["control"], trained, told(), tmp_path))


def test_find_or_train_finds_some_and_trains_the_others(base, dataset, tmp_path, capsys):
    """The one that the paper has not: `distilled` at T = 1 throughout, on the labels of `standard`."""
    for name in ("temperature", "distilled"):
        save_weights(base, tmp_path / f"{name}.npz")
    protocol = Protocol("digits", T=20.0, epochs=1, batch=32)
    found = masking.find_or_train(["two_by_two_by_two"], dataset, protocol, tmp_path, "first")
    assert list(found) == list(NETWORKS) and found["standard"].layers["pool1"].ties == "first"
    assert np.array_equal(correct(found["temperature"], dataset.test_images, dataset.test_labels), np.ones(IMAGES))
    printed = capsys.readouterr().out
    assert f"temperature: {tmp_path / 'temperature.npz'}" in printed and "npz, taken as it is" in printed
    assert "standard: to be trained, 1 epochs" in printed
    recipe = json.loads(str(load_npz(tmp_path / "standard-distilled.checkpoint.npz")["fingerprint"]))
    assert recipe["temperature"] == 1.0
    assert recipe["learning_rate"] == protocol.recipe("distilled").learning_rate
    again = masking.find_or_train(["control"], dataset, protocol, tmp_path, "all")
    assert list(again) == ["standard"]
    assert np.array_equal(get_weights(again["standard"])["conv1_W"], get_weights(found["standard"])["conv1_W"])


def test_find_or_train_takes_the_labels_of_the_teacher_that_is_there(base, dataset, tmp_path):
    """standard.npz alone is enough: it is not trained again."""
    for name in ("standard", "temperature", "distilled"):
        save_weights(base, tmp_path / f"{name}.npz")
    before = (tmp_path / "standard.npz").read_bytes()
    protocol = Protocol("digits", T=20.0, epochs=1, batch=32)
    found = masking.find_or_train(["two_by_two_by_two"], dataset, protocol, tmp_path, "all")
    assert (tmp_path / "standard.npz").read_bytes() == before and not (tmp_path / "standard.checkpoint.npz").exists()
    assert (tmp_path / "standard-distilled.png").exists()
    direct, _ = train("standard-distilled", dataset, protocol, tmp_path / "direct", teacher=base)
    for name, weights in get_weights(direct).items():
        assert np.array_equal(get_weights(found["standard-distilled"])[name], weights)


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
        (path, "cpu", "first", {"T": T, "dataset": "digits"}) for path, T in zip(weights.values(), (1, 20), strict=True)
    ]
    results = read_json(tmp_path / "masking_gradient_budget_two_by_two_by_two.json")
    assert set(results) & set(masking.PARTS) == {"gradient_budget", "two_by_two_by_two"}
    assert all(masking.PARTS[name].title in said for name in ("gradient_budget", "two_by_two_by_two"))
    assert set(results["weights"]) == set(weights) and results["ties"] == "first"
    outcomes = [row["plain"] for row in results["two_by_two_by_two"]]
    assert all(o["images"] == 8 and o["moves"] == o["attacked"] > 0 for o in outcomes) and len(outcomes) == 4


def test_find_or_train_takes_no_network_of_another_temperature(base, dataset, tmp_path, monkeypatch):
    """Not that of the same name, trained at 20, where 5 is asked for; and next time its own."""
    for name in ("standard", "temperature"):
        save_weights(base, tmp_path / f"{name}.npz", 20 if name == "temperature" else 1)
    protocol, trained = Protocol("digits", T=5.0, epochs=1, batch=32), []

    def train(name, dataset, protocol, folder, teacher):
        trained.append(name)
        save_weights(base, folder / f"{protocol.file_name(name)}.npz", protocol.recipe(name).temperature)
        return None, None

    monkeypatch.setattr(masking, "train", train)
    monkeypatch.setattr(masking, "plot_history", lambda *_: None)
    monkeypatch.setitem(masking.PARTS, "few", masking.PARTS["control"]._replace(needs=["standard", "temperature"]))
    for _ in range(2):
        found = masking.find_or_train(["few"], dataset, protocol, tmp_path, "all")
        assert list(found) == ["standard", "temperature"] and trained == ["temperature"]
    assert (tmp_path / "temperature-T5.npz").exists()


def test_command_refuses_networks_of_another_temperature(base, tmp_path):
    named = []
    for name, T in (("standard", 1), ("temperature", 20)):
        save_weights(base, tmp_path / f"{name}.npz", T)
        named.append(f"{name}={tmp_path / name}.npz")
    options, said = ("--temperature", 5, "--out", tmp_path / "out"), "temperature.npz was trained at T = 20, not at 5"
    assert_mistake(("masking", "--weights", *named, *options), said)


def test_command_names_its_results_by_the_parts_unless_it_runs_all():
    assert masking.file_name(["cost", "verdict"]) == "masking_verdict_cost.json"
    assert masking.file_name([*reversed(masking.PARTS), "cost"]) == "masking.json"


@pytest.mark.parametrize("option", [("--epochs", 3), ("--validation", 10), ("--no-graph",)])
def test_command_trains_none_of_the_weights(tmp_path, option):
    named = ("--weights", "standard=s.npz", *option, "--out", tmp_path)
    assert_mistake(("masking", *named), f"--weights takes networks as they are: leave out {option[0]}, or train")


def test_command_help_names_every_part():
    code, said, _ = run("masking", "--help")
    assert code == 0 and all(part.name in said and part.title in said for part in masking.PARTS.values())


def test_command_takes_a_network_once(tmp_path):
    named = ("standard=a.npz", "temperature=t.npz", "standard=b.npz")
    said = "--weights names a network twice: standard, temperature, standard"
    assert_mistake(("masking", "--out", tmp_path, "--weights", *named), said)


def test_command_needs_a_standard_network(tmp_path):
    assert_mistake(("masking", "--out", tmp_path, "--weights", "temperature=t.npz"), "standard=FILE.npz")
    with pytest.raises(argparse.ArgumentTypeError, match="NAME=FILE"):
        masking.named_weights("teacher=file.npz")
