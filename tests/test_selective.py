"""Selective prediction: curves and areas against their definitions and against scikit-learn, and what a threshold promises."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from cifar_keras.errors import UserError
from cifar_keras.evaluation import selective


def predictions(count: int, seed: int = 0, digits: int = 2) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Calibrated probabilities of three classes, rounded so that some confidences are equal, and labels drawn from them."""
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet([0.3, 0.3, 0.3], count)
    labels = np.array([generator.choice(3, p=row) for row in probabilities])
    return probabilities.round(digits), labels


def test_the_curve_is_coverage_and_accuracy_at_each_threshold() -> None:
    probabilities, labels = predictions(500)
    curve = selective.coverage_curve(probabilities, labels)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    np.testing.assert_array_equal(curve.threshold, np.unique(confidence)[::-1])
    for threshold, coverage, accuracy in zip(curve.threshold, curve.coverage, curve.accuracy, strict=True):
        answered = confidence >= threshold
        assert coverage == answered.mean()
        assert accuracy == pytest.approx(right[answered].mean())
    assert curve.coverage[-1] == 1


def test_the_area_is_the_mean_risk_over_orders_of_equal_confidences() -> None:
    """The mean over many random orders of the risk of the k most confident, which is the definition."""
    probabilities, labels = predictions(40, digits=1)
    confidence, wrong = probabilities.max(axis=1), probabilities.argmax(axis=1) != labels
    generator, areas = np.random.default_rng(1), []
    for _ in range(5000):
        order = np.lexsort([generator.random(len(labels)), -confidence])
        areas.append((np.cumsum(wrong[order]) / np.arange(1, len(labels) + 1)).mean())
    found = selective.risk_coverage_area(selective.coverage_curve(probabilities, labels))
    assert abs(found - np.mean(areas)) < 5 * np.std(areas) / np.sqrt(len(areas))


def test_areas_by_hand() -> None:
    """Right, wrong, right from the most to the least confident: risks 0, 1/2, 1/3."""
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    curve = selective.coverage_curve(probabilities, np.array([0, 1, 0]))
    assert selective.risk_coverage_area(curve) == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)


@pytest.mark.parametrize("precision", [0.7, 0.8, 0.9, 0.95])
def test_the_threshold_is_the_smallest_whose_interval_is_high_enough(precision: float) -> None:
    probabilities, labels = predictions(2000)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels

    def low_at(threshold: float) -> float:
        answered = confidence >= threshold
        test = stats.binomtest(int(right[answered].sum()), int(answered.sum()))
        return float(test.proportion_ci(0.95, method="wilson").low)

    wanted = min(threshold for threshold in np.unique(confidence) if low_at(threshold) >= precision)
    found = selective.fit_threshold(probabilities, labels, precision)
    assert found.probability == wanted
    answered = confidence >= wanted
    assert (found.answered, found.right, found.images) == (answered.sum(), right[answered].sum(), 2000)
    assert found.interval.low == pytest.approx(low_at(wanted))


def test_other_images_have_the_precision_that_was_asked_for() -> None:
    """On 40 draws of other images, nearly always: without the interval it would be about every second time."""
    held = 0
    for seed in range(40):
        probabilities, labels = predictions(1000, seed=seed)
        threshold = selective.fit_threshold(probabilities, labels, 0.9).probability
        others, their_labels = predictions(4000, seed=1000 + seed)
        answered = others.max(axis=1) >= threshold
        held += (others.argmax(axis=1) == their_labels)[answered].mean() >= 0.9
    assert held >= 36


def test_a_precision_out_of_reach_has_the_best_that_is_not() -> None:
    """Of 20 images all are right, of which the interval begins at 0.84."""
    probabilities = np.tile([[0.8, 0.2]], (20, 1))
    labels = np.zeros(20, np.int64)
    assert selective.fit_threshold(probabilities, labels, 0.8).answered == 20
    match = (
        r"^--precision is out of reach: on the 20 validation images no threshold has more than 0\.8389 for certain "
        r"\(at 0\.8000, 20 of 20 are right\)\. Received: 0\.9$"
    )
    with pytest.raises(UserError, match=match):
        selective.fit_threshold(probabilities, labels, 0.9)


@pytest.mark.parametrize("digits", [1, 6])
def test_known_against_unknown_is_what_scikit_learn_and_the_definition_say(digits: int) -> None:
    generator = np.random.default_rng(3)
    known, unknown = generator.beta(5, 2, 700).round(digits), generator.beta(3, 3, 400).round(digits)
    found = selective.separation(known, unknown, seed=0)
    higher = (known[:, None] > unknown).mean() + (known[:, None] == unknown).mean() / 2
    assert found.auroc == pytest.approx(higher)
    threshold = max(value for value in known if (known >= value).mean() >= 0.95)
    assert found.false_positive_rate == pytest.approx((unknown >= threshold).mean())


def test_resampled_rates_are_those_of_the_resampled_images() -> None:
    generator = np.random.default_rng(4)
    known, unknown = generator.beta(5, 2, 60).round(1), generator.beta(3, 3, 40).round(1)
    times = generator.integers(0, 4, (20, 100))
    found = selective.resampled_separation(known, unknown)(times)
    for sample, row in enumerate(times):
        wanted = selective.separation(known.repeat(row[:60]), unknown.repeat(row[60:]), seed=0)
        assert found["auroc"][sample] == pytest.approx(wanted.auroc)
        assert found["false_positive_rate"][sample] == pytest.approx(wanted.false_positive_rate)


def test_the_interval_of_auroc_covers_the_true_one_as_often_as_it_says() -> None:
    """Of two normal distributions one standard deviation apart it is the normal distribution function of 1 / sqrt(2)."""
    true, covered = stats.norm.cdf(1 / np.sqrt(2)), 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        known, unknown = generator.normal(1, 1, 300), generator.normal(0, 1, 150)
        low, high = selective.separation(known, unknown, seed=seed).intervals["auroc"]
        covered += low <= true <= high
    assert covered >= 51  # 57 are expected; fewer than 51 have a probability of 1 in 100


def test_what_is_told_apart_perfectly_has_no_interval() -> None:
    found = selective.separation(np.array([0.8, 0.9, 0.9]), np.array([0.1, 0.2]), seed=0)
    assert found == (1.0, 0.0, {"auroc": (1.0, 1.0), "false_positive_rate": (0.0, 0.0)})


def test_a_coverage_has_the_highest_threshold_that_reaches_it() -> None:
    probabilities, labels = predictions(500)
    curve = selective.coverage_curve(probabilities, labels)
    for coverage in (0.01, 0.25, 0.9, 1.0):
        found = selective.at_coverage(curve, coverage)
        confidence = probabilities.max(axis=1)
        assert found.probability == max(each for each in confidence if (confidence >= each).mean() >= coverage)
        assert found.answered == (confidence >= found.probability).sum()
