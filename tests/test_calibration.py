import math

import numpy as np
import pytest

from cifar_keras.evaluation.calibration import (
    BINS,
    calibration_error_by_chance,
    expected_calibration_error,
    fit_temperature,
    reliability,
    softmax,
)


def test_calibration_error_by_hand() -> None:
    # Confidences 0.9, 0.95 (bin 13 and 14 of 15), 0.6 and 0.6 (both bin 8); right, wrong, right, wrong.
    probabilities = np.array([[0.9, 0.1], [0.95, 0.05], [0.4, 0.6], [0.4, 0.6]])
    labels = np.array([0, 1, 1, 0])
    wanted = (abs(1 - 0.9) + abs(0 - 0.95) + 2 * abs(0.5 - 0.6)) / 4
    assert expected_calibration_error(probabilities, labels) == pytest.approx(wanted)
    diagram = reliability(probabilities, labels)
    assert dict(
        zip(np.flatnonzero(diagram.images).tolist(), diagram.images[diagram.images > 0].tolist(), strict=True)
    ) == {
        8: 2,
        13: 1,
        14: 1,
    }
    assert diagram.accuracy[8] == 0.5
    assert diagram.confidence[8] == pytest.approx(0.6)
    assert np.isnan(diagram.accuracy[0])


def test_a_bin_holds_its_upper_end_and_certainty_is_in_the_last() -> None:
    probabilities = np.array([[1.0, 0.0], [0.8, 0.2]])  # 0.8 = 12 / 15
    assert np.flatnonzero(reliability(probabilities, np.array([0, 0])).images).tolist() == [11, BINS - 1]


def test_calibration_error_matches_its_equation_on_random_predictions() -> None:
    generator = np.random.default_rng(3)
    probabilities = generator.dirichlet(np.full(10, 0.4), 2000)
    labels = generator.integers(0, 10, 2000)
    error = 0.0
    for edge in range(BINS):
        inside = (probabilities.max(axis=1) > edge / BINS) & (probabilities.max(axis=1) <= (edge + 1) / BINS)
        if inside.any():
            accuracy = (probabilities[inside].argmax(axis=1) == labels[inside]).mean()
            error += inside.mean() * abs(accuracy - probabilities[inside].max(axis=1).mean())
    assert expected_calibration_error(probabilities, labels) == pytest.approx(error)


def test_what_chance_alone_shows_is_what_labels_drawn_from_the_probabilities_show() -> None:
    generator = np.random.default_rng(4)
    probabilities = generator.dirichlet(np.full(10, 0.2), 1000)
    errors = [
        expected_calibration_error(probabilities, np.array([generator.choice(10, p=row) for row in probabilities]))
        for _ in range(200)
    ]
    mean, high = calibration_error_by_chance(probabilities, seed=0)
    assert mean == pytest.approx(np.mean(errors), rel=0.05)
    assert high == pytest.approx(np.quantile(errors, 0.975), rel=0.1)
    assert 0.01 < mean < high < 0.1


def test_chance_has_the_mean_of_a_binomial_in_a_single_bin() -> None:
    """100 predictions of 0.9 each: E|X - 90| / 100 for a binomial X, summed by its definition."""
    expected = sum(math.comb(100, k) * 0.9**k * 0.1 ** (100 - k) * abs(k - 90) for k in range(101)) / 100
    mean, _ = calibration_error_by_chance(np.tile([0.9, 0.1], (100, 1)), seed=0, draws=20_000)
    assert mean == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_the_temperature_that_was_hidden_is_found(temperature: float) -> None:
    """Labels are drawn from softmax(logits); what is given is the logits times the temperature."""
    generator = np.random.default_rng(1)
    logits = generator.normal(scale=2, size=(20_000, 10))
    labels = np.array([generator.choice(10, p=row) for row in softmax(logits.astype(np.float32))])
    found = fit_temperature((logits * temperature).astype(np.float32), labels)
    assert found == pytest.approx(temperature, rel=0.03)
    calibrated = softmax((logits * temperature).astype(np.float32), found)
    assert expected_calibration_error(calibrated, labels) < 0.015


def test_no_other_temperature_has_a_lower_cross_entropy() -> None:
    generator = np.random.default_rng(2)
    logits = generator.normal(size=(500, 5)).astype(np.float32)
    labels = generator.integers(0, 5, 500)

    def cross_entropy(temperature: float) -> float:
        return float(-np.log(softmax(logits, temperature)[np.arange(500), labels]).mean())

    best = cross_entropy(fit_temperature(logits, labels))
    assert all(best <= cross_entropy(temperature) for temperature in np.geomspace(0.05, 100, 200))


def test_certain_and_right_predictions_have_a_temperature_all_the_same() -> None:
    assert math.isfinite(fit_temperature(np.array([[9.0, 0.0], [0.0, 9.0]], np.float32), np.array([0, 1])))
