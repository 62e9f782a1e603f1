"""experiments/budget.py: the budget of two networks is that of their maps, whose sizes are kept."""

import numpy as np
import pytest

from experiments import budget, common
from experiments.masking import without_images
from minicnn.paper import masking
from minicnn.paper.networks import rescaled
from tests.experiments.conftest import IMAGES


def test_budget_adds_measurement_and_prediction_and_keeps_the_sizes(base, dataset, told, monkeypatch):
    network, reference = rescaled(base, 6), rescaled(base, 2)
    sample = common.sample(dataset, IMAGES, seed=0)

    def measured(T, reference_T=1.0):
        store = told().store
        return budget.budget(network, reference, sample, T=T, reference_T=reference_T, trained_T=20.0, store=store)

    at_1, at_20 = measured(1.0), measured(20.0)
    for T, found in (1, at_1), (20, at_20):
        assert (found["T"], found["reference_T"], found["images"]) == (T, 1, IMAGES)
        assert found["measured"]["images"] == IMAGES and found["measured"]["largest_difference"] < 2e-5
    assert at_1["prediction"]["T"] == 20
    assert "prediction" not in at_20 and "prediction" not in measured(1.0, reference_T=20.0)
    monkeypatch.setattr(masking, "map_sizes", None)
    again = measured(1.0)
    assert without_images(again) == without_images(at_1)
    assert np.array_equal(again["by_image"]["ratio"], at_1["by_image"]["ratio"])
    assert np.array_equal(at_1["by_image"]["image"], sample.indices)


def test_budget_without_an_image_to_compare_is_a_usage_error(base, dataset, told):
    wrong = common.sample(dataset._replace(test_labels=(dataset.test_labels + 1) % 10), IMAGES, seed=0)
    told = {"reference_T": 1.0, "trained_T": 20.0, "store": told().store}
    with pytest.raises(common.UsageError, match="of 6 images both networks classify none correctly"):
        budget.budget(base, base, wrong, T=1.0, **told)
