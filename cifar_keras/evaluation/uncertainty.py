"""How sure a metric is: bootstrap intervals for a model, and McNemar's test between two."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats

from cifar_keras.evaluation.calibration import BINS, DRAWN_TOGETHER, bin_of

RESAMPLES = 2000
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """Where a metric lies, with a confidence of 95 %."""

    low: float
    high: float


# int64 `[samples, count]`, how often each image is in each sample -> metrics, float64 `[samples]` each
Statistics = Callable[[NDArray[np.int64]], dict[str, NDArray[np.float64]]]


def bootstrap_intervals(
    statistics: Statistics,
    count: int,
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, Interval]:
    """Return the basic bootstrap interval of every statistic of a sample (Davison and Hinkley, 1997, equation 5.6).

    With q the quantiles of what resamples give, and t what the sample gives, it is [2 t - q(0.975), 2 t - q(0.025)]. Unlike
    the interval of the quantiles themselves it does not keep the bias that a resample adds, which is as large as the
    calibration error of a good model.

    Args:
        statistics: metrics, none below 0, of samples in which each image is there as often as `[samples, count]` says.
        count: images.
        seed: of the resamples.
        resamples: how many; each draws `count` images with replacement.
    """
    generator = np.random.default_rng(seed)
    of_sample = statistics(np.ones([1, count], np.int64))
    together = max(1, DRAWN_TOGETHER // count)
    drawn = []
    for first in range(0, resamples, together):
        samples = min(together, resamples - first)
        times = counts_of_rows(generator.integers(count, size=[samples, count]), count)
        drawn.append(np.stack(list(statistics(times).values()), axis=-1))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail], axis=0)
    estimate = np.array([float(values[0]) for values in of_sample.values()])
    return {
        name: Interval(max(0.0, float(lower)), max(0.0, float(upper)))
        for name, lower, upper in zip(of_sample, 2 * estimate - high, 2 * estimate - low, strict=True)
    }


def mean_interval(values: NDArray[np.float64], *, seed: int, highest: float = np.inf) -> Interval:
    """Return `bootstrap_intervals` of the mean of values that are known of each image.

    Args:
        values: float64 `[n]`, none below 0.
        seed: of the resamples.
        highest: that a value can be; the interval ends there.
    """
    count = len(values)
    low, high = bootstrap_intervals(lambda times: {"mean": times @ values / count}, count, seed=seed)["mean"]
    return Interval(low, min(highest, high))


def fraction_interval(right: int, count: int) -> Interval:
    """Return Wilson's score interval of a fraction (Wilson, 1927, JASA 22), which stays between 0 and 1 for few images too.

    Args:
        right: how many of the images are right.
        count: how many there are, at least 1.
    """
    interval = stats.binomtest(right, count).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def counts_of_rows(values: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Count how often 0..size - 1 occur in each row of values, int64 `[rows, n]`; returns int64 `[rows, size]`."""
    rows = len(values)
    return np.bincount((values + size * np.arange(rows)[:, None]).ravel(), minlength=rows * size).reshape(rows, size)


def resampled_metrics(probabilities: NDArray[np.float64], labels: NDArray[np.int64], *, top: int) -> Statistics:
    """Prepare the metrics of `metrics.classification_metrics` for samples in which images are there more or less often.

    By sums and counts alone, because there are thousands of samples.

    Args:
        probabilities: float64 `[n, classes]`; rows sum to 1.
        labels: int64 `[n]`.
        top: how many of the largest probabilities count for `top5`.

    Returns:
        From int `[samples, n]`, how often each image is there, to the metrics by their names in `classification_metrics`;
        those of the class with index i are named `precision/i`, `recall/i` and `f1/i`.
    """
    count, classes = probabilities.shape
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    of_label = probabilities[np.arange(count), labels]
    right = predicted == labels
    # What each image adds to a mean. Of equal probabilities the class with the higher index ranks first, as in scikit-learn.
    ranked = np.argsort(probabilities, axis=1, kind="stable")[:, ::-1]
    means = {
        "accuracy": right.astype(np.float64),
        "top5": (ranked[:, :top] == labels[:, None]).any(axis=1).astype(np.float64),
        "loss": -np.log(np.maximum(of_label, np.finfo(np.float64).eps)),
        "brier": (probabilities**2).sum(axis=1) - 2 * of_label + 1,
    }
    # What each image adds to a bin of the calibration error, as one matrix product with the means.
    gaps = np.eye(BINS)[bin_of(confidence)] * (right - confidence)[:, None]
    summands = np.concatenate([np.stack(list(means.values()), axis=1), gaps], axis=1)
    # And to the counts of its classes. Sparse: of 1,000 classes the products would be with zeros, in 240 MB for 10,000 images.
    of_hits, of_support, of_predictions = (
        sparse.csr_array((weights.astype(np.float64), (np.arange(count), of_class)), shape=(count, classes))
        for weights, of_class in ((right, labels), (np.ones(count), labels), (np.ones(count), predicted))
    )

    def statistics(times: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        weights, images = times.astype(np.float64), times.sum(axis=1)
        sums, gap_sums = np.split(weights @ summands, [len(means)], axis=1)
        # In rows, because the order of a sum over classes, and so its rounding, depends on the memory layout.
        hits, support, predictions = (
            np.ascontiguousarray(weights @ of) for of in (of_hits, of_support, of_predictions)
        )
        return {
            **dict(zip(means, sums.T / images, strict=True)),
            "calibration_error": np.abs(gap_sums).sum(axis=1) / images,
            **_rates(hits, support, predictions),
        }

    return statistics


def _rates(
    hits: NDArray[np.float64], support: NDArray[np.float64], predictions: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Return means over classes, weighted means, and rates of each class, from counts `[samples, classes]`."""
    rates = {
        "precision": hits / np.maximum(predictions, 1),
        "recall": hits / np.maximum(support, 1),
        "f1": 2 * hits / np.maximum(predictions + support, 1),
    }
    images, classes = support.sum(axis=1), support.shape[1]
    return {
        **{f"macro_{name}": values.mean(axis=1) for name, values in rates.items()},
        **{f"weighted_{name}": (values * support).sum(axis=1) / images for name, values in rates.items()},
        **{f"{name}/{index}": values[:, index] for name, values in rates.items() for index in range(classes)},
    }


class McNemar(NamedTuple):
    """Two models on the same images."""

    only_first: int  # images that the first alone gets right
    only_second: int
    p_value: float  # of a difference at least as large, if both were equally good


def mcnemar(first_right: NDArray[np.bool_], second_right: NDArray[np.bool_]) -> McNemar:
    """Test whether two models differ in accuracy, by the images that one of them alone gets right.

    The exact form of McNemar's test (Psychometrika 12, 1947): if the models were equally good, each of those images would be
    the first's with probability 1/2.

    Args:
        first_right: bool `[n]`, whether the first model is right about each image.
        second_right: the same of the second.

    Raises:
        ValueError: they are not about equally many images.
    """
    if first_right.shape != second_right.shape:
        raise ValueError(
            f"both have to be about the same images. Received: {len(first_right):,} and {len(second_right):,}"
        )
    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    differ = only_first + only_second
    p_value = float(stats.binomtest(only_first, differ, 0.5).pvalue) if differ else 1.0
    return McNemar(only_first, only_second, p_value)
