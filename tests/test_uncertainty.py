from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sklearn_metrics

from cifar_keras.evaluation.calibration import expected_calibration_error, softmax
from cifar_keras.evaluation.metrics import TOP, classification_metrics
from cifar_keras.evaluation.uncertainty import (
    bootstrap_intervals,
    fraction_interval,
    mcnemar,
    paired_differences,
    resampled_metrics,
)

CLASSES = 10


def predictions(count: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, count)
    logits = generator.normal(size=(count, CLASSES)).astype(np.float32)
    logits[np.arange(count), labels] += 1.5
    return logits, labels


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (1, 5), (0, 7), (31, 40), (6820, 6868)])
def test_the_interval_of_a_fraction_is_wilsons(right: int, count: int) -> None:
    fraction, z = right / count, stats.norm.ppf(0.975)
    middle = (fraction + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(fraction * (1 - fraction) / count + z**2 / (4 * count**2))
    found = fraction_interval(right, count)
    np.testing.assert_allclose(found, (middle - half, middle + half), atol=1e-12)
    assert -1e-12 <= found.low <= fraction <= found.high <= 1 + 1e-12


def test_a_sample_in_which_images_repeat_has_the_figures_of_scikit_learn() -> None:
    logits, labels = predictions(400)
    drawn = np.random.default_rng(5).integers(400, size=[3, 400])
    samples = np.stack([np.bincount(row, minlength=400) for row in drawn])
    figures = resampled_metrics(softmax(logits), labels, top=TOP)(samples)
    times, found = samples[1], {name: values[1] for name, values in figures.items()}
    logits, labels = np.repeat(logits, times, axis=0), np.repeat(labels, times)
    probabilities, predicted = softmax(logits), logits.argmax(axis=1)
    classes = np.arange(CLASSES)

    def rates(average: Any) -> Any:
        return sklearn_metrics.precision_recall_fscore_support(labels, predicted, labels=classes, average=average)[:3]

    names = ("precision", "recall", "f1")
    wanted = {
        "accuracy": sklearn_metrics.accuracy_score(labels, predicted),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, predicted),
        "top5": sklearn_metrics.top_k_accuracy_score(labels, logits, k=5, labels=classes),
        "loss": sklearn_metrics.log_loss(labels, probabilities, labels=classes),
        "brier": sklearn_metrics.brier_score_loss(labels, probabilities, labels=classes, scale_by_half=False),
        "calibration_error": expected_calibration_error(probabilities, labels),
        **{f"macro_{name}": value for name, value in zip(names, rates("macro"), strict=True)},
        **{f"weighted_{name}": value for name, value in zip(names, rates("weighted"), strict=True)},
        **{
            f"{name}/{index}": value
            for name, values in zip(names, rates(None), strict=True)
            for index, value in enumerate(values)
        },
    }
    assert found.keys() == wanted.keys()
    assert found == pytest.approx(wanted)


def test_intervals_are_those_of_scipy() -> None:
    generator = np.random.default_rng(0)
    values = generator.exponential(size=300)

    def mean(times: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        return {"mean": times @ values / times.sum(axis=1)}

    low, high = bootstrap_intervals(mean, 300, seed=1, resamples=20_000)["mean"]
    reference = stats.bootstrap((values,), np.mean, method="basic", n_resamples=20_000, rng=np.random.default_rng(2))
    assert low == pytest.approx(reference.confidence_interval.low, abs=0.005)
    assert high == pytest.approx(reference.confidence_interval.high, abs=0.005)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """95 % of 300 intervals of an accuracy of 0.8 over 200 images; fewer than 272 would come by chance once in 1,600."""
    generator = np.random.default_rng(11)
    covered = 0
    for seed in range(300):
        right = generator.random(200) < 0.8

        def accuracy(times: NDArray[np.int64], right: NDArray[np.bool_] = right) -> dict[str, NDArray[np.float64]]:
            return {"accuracy": times @ right / times.sum(axis=1)}

        low, high = bootstrap_intervals(accuracy, 200, seed=seed, resamples=500)["accuracy"]
        covered += low <= 0.8 <= high
    assert covered >= 272


def test_no_interval_lies_below_zero() -> None:
    """Of a calibration error of exactly 0 every resample has a larger one: 450 of 500 right at 0.9, and 350 of 500 at 0.7."""
    confidence = np.repeat([0.9, 0.7], 500)
    labels = np.concatenate([np.arange(500) >= 450, np.arange(500) >= 350]).astype(np.int64)
    logits = np.log(np.stack([confidence, 1 - confidence], axis=1)).astype(np.float32)
    metrics = classification_metrics(logits, labels, ["first", "second"])
    assert metrics["calibration_error"] == pytest.approx(0, abs=1e-6)
    low, high = metrics["intervals"]["calibration_error"]
    assert 0 == low <= high


def test_the_interval_of_a_calibration_error_that_is_zero_holds_zero() -> None:
    """A model whose confidences are right; 95 % of 40 intervals, of which fewer than 33 come by chance once in 1,000."""
    generator = np.random.default_rng(12)
    confidence = np.linspace(0.51, 0.99, 600)
    logits = np.log(np.stack([confidence, 1 - confidence], axis=1)).astype(np.float32)
    covered = 0
    for seed in range(40):
        labels = (generator.random(600) >= confidence).astype(np.int64)
        found = classification_metrics(logits, labels, ["first", "second"], seed=seed)
        low, high = found["intervals"]["calibration_error"]
        assert found["calibration_error"] <= high  # what the bootstrap says can be less
        covered += low == 0 < found["calibration_error"]
    assert covered >= 33


def test_intervals_depend_on_the_seed_alone_and_stay_within_their_range() -> None:
    logits, labels = predictions(60)
    names = [f"class {index}" for index in range(CLASSES)]
    first, second, third = (classification_metrics(logits, labels, names, seed=seed) for seed in (1, 1, 2))
    assert first == second
    assert first["intervals"] != third["intervals"]
    per_class = [values["intervals"][rate] for values in first["per_class"].values() for rate in values["intervals"]]
    for low, high in [*first["intervals"].values(), *per_class]:
        assert 0 <= low <= high
    for name in first["intervals"].keys() - {"loss", "brier"}:
        assert first["intervals"][name][1] <= 1
        assert first["intervals"][name][0] <= first[name] <= first["intervals"][name][1]


def test_mcnemar_by_the_binomial_distribution() -> None:
    """Of 12 images that one model alone gets right the first has 9: twice the tail of (12 choose k) / 2^12 from 9 on."""
    first = np.array([True] * 9 + [False] * 3 + [True] * 50 + [False] * 5)
    second = np.array([False] * 9 + [True] * 3 + [True] * 50 + [False] * 5)
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (9, 3)
    assert found.p_value == pytest.approx(2 * (220 + 66 + 12 + 1) / 4096)
    assert mcnemar(second, first).p_value == found.p_value


def test_models_that_agree_do_not_differ() -> None:
    right = np.array([True, False, True])
    assert mcnemar(right, right) == (0, 0, 1.0)
    with pytest.raises(ValueError, match="Received: 3 and 2"):
        mcnemar(right, right[:2])


def test_the_balanced_accuracy_of_a_sample_is_over_the_classes_in_it() -> None:
    """The plain mean of ten recalls would be 0.2 here, because eight classes have none."""
    probabilities, labels = np.eye(10)[[0, 1, 2]], np.array([0, 1, 9])
    found = resampled_metrics(probabilities, labels, top=TOP)(np.array([[2, 1, 0], [1, 1, 1]]))
    assert found["balanced_accuracy"].tolist() == pytest.approx([1, 2 / 3])
    assert found["macro_recall"].tolist() == pytest.approx([0.2, 0.2])


def test_paired_differences_are_those_of_scipy() -> None:
    """Their interval is far narrower than the images' own spread would make one of two separate samples."""
    generator = np.random.default_rng(3)
    hard = generator.random(400) < 0.4
    first, second = (np.where(hard, 0.0, generator.random(400) < rate) for rate in (0.9, 0.8))

    def accuracy(right: NDArray[np.float64]) -> Any:
        return lambda times: {"accuracy": times @ right / times.sum(axis=1), "other": times @ right}

    found = paired_differences(accuracy(first), accuracy(second), ["accuracy"], 400, seed=1)
    assert found.keys() == {"accuracy"}
    assert found["accuracy"].value == pytest.approx(second.mean() - first.mean())
    low, high = found["accuracy"].interval
    reference = stats.bootstrap(
        (second - first,), np.mean, method="basic", n_resamples=20_000, rng=np.random.default_rng(2)
    )
    assert low == pytest.approx(reference.confidence_interval.low, abs=0.005)
    assert high == pytest.approx(reference.confidence_interval.high, abs=0.005)
    assert low < high < 0
