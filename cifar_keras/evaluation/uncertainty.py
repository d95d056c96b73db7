"""The uncertainty of metrics: bootstrap intervals for one model, and McNemar's test between two."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats

from cifar_keras.evaluation.calibration import BINS, DRAWN_TOGETHER, bin_of

RESAMPLES = 2000
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """The interval in which a metric lies, with a confidence of 95 %."""

    low: float
    high: float


# A function from int64 `[samples, count]`, how often each image is in each sample, to metrics, float64 `[samples]` each.
Statistics = Callable[[NDArray[np.int64]], dict[str, NDArray[np.float64]]]


def bootstrap_intervals(
    statistics: Statistics,
    count: int | Sequence[int],
    *,
    seed: int,
    resamples: int = RESAMPLES,
    lowest: float = 0.0,
) -> dict[str, Interval]:
    """Return the basic bootstrap interval of every statistic of a sample (Davison and Hinkley, 1997, equation 5.6).

    The interval is [2 t - q(0.975), 2 t - q(0.025)], where t is the statistic of the sample, and q are its quantiles over the resamples.
    A resample adds a bias, which is as large as the calibration error of a good model. The interval of the quantiles themselves would
    keep this bias; the basic interval does not.

    Args:
        statistics: a function that returns metrics, none below `lowest`. Its argument, `[samples, count]`, says how often each image is in
            each sample.
        count: number of images; or of each of several groups, which are resampled apart and lie one after the other.
        seed: seed of the resamples.
        resamples: number of resamples; each draws `count` images with replacement.
        lowest: the lowest possible value; no interval goes below it.
    """
    generator = np.random.default_rng(seed)
    counts = [count] if isinstance(count, int) else count
    of_sample = statistics(np.ones([1, sum(counts)], np.int64))
    together = max(1, DRAWN_TOGETHER // sum(counts))
    drawn = []
    for first in range(0, resamples, together):
        samples = min(together, resamples - first)
        times = np.concatenate(
            [counts_of_rows(generator.integers(size, size=[samples, size]), size) for size in counts], axis=1
        )
        drawn.append(np.stack(list(statistics(times).values()), axis=-1))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail], axis=0)
    estimate = np.array([float(values[0]) for values in of_sample.values()])
    return {
        name: Interval(max(lowest, float(lower)), max(lowest, float(upper)))
        for name, lower, upper in zip(of_sample, 2 * estimate - high, 2 * estimate - low, strict=True)
    }


class Difference(NamedTuple):
    """How much a metric of a second model is above that of a first, on the same images."""

    value: float
    interval: Interval


def paired_differences(
    first: Statistics, second: Statistics, names: Sequence[str], count: int, *, seed: int
) -> dict[str, Difference]:
    """Return how far metrics of two models on the same images differ, with intervals by `bootstrap_intervals`.

    Each resample has the same images for both models. So what makes an image hard for both cancels out, and the interval is narrower
    than those of the two metrics.

    Args:
        first: metrics of the first model, e.g. what `resampled_metrics` returned.
        second: metrics of the second model.
        names: which metrics.
        count: number of images.
        seed: seed of the resamples.
    """

    def differences(times: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        of_first, of_second = first(times), second(times)
        return {name: of_second[name] - of_first[name] for name in names}

    values = differences(np.ones([1, count], np.int64))
    intervals = bootstrap_intervals(differences, count, seed=seed, lowest=-np.inf)
    return {name: Difference(float(values[name][0]), intervals[name]) for name in names}


def mean_interval(values: NDArray[np.float64], *, seed: int, highest: float = np.inf) -> Interval:
    """Return the interval of the mean of one value per image, by `bootstrap_intervals`.

    Args:
        values: float64 `[n]`, none below 0.
        seed: seed of the resamples.
        highest: the largest possible value; the interval does not go beyond it.
    """
    count = len(values)
    low, high = bootstrap_intervals(lambda times: {"mean": times @ values / count}, count, seed=seed)["mean"]
    return Interval(low, min(highest, high))


def fraction_interval(right: int, count: int) -> Interval:
    """Return Wilson's score interval of a fraction (Wilson, 1927, JASA 22), which stays between 0 and 1 even for few images.

    Args:
        right: number of images that are right.
        count: number of all images, at least 1.

    Examples:
        >>> low, high = fraction_interval(90, 100)
        >>> round(low, 3), round(high, 3)
        (0.826, 0.945)
    """
    interval = stats.binomtest(right, count).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def counts_of_rows(values: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return how often each of 0..size - 1 occurs in each row of `values`, from int64 `[rows, n]` to int64 `[rows, size]`.

    Examples:
        >>> counts_of_rows(np.array([[0, 2, 2], [1, 1, 1]]), size=3).tolist()
        [[1, 0, 2], [0, 3, 0]]
    """
    rows = len(values)
    return np.bincount((values + size * np.arange(rows)[:, None]).ravel(), minlength=rows * size).reshape(rows, size)


def resampled_metrics(probabilities: NDArray[np.float64], labels: NDArray[np.int64], *, top: int) -> Statistics:
    """Return a function that computes the metrics of `metrics.classification_metrics` for resampled images.

    It uses only sums and counts, because there are thousands of samples.

    Args:
        probabilities: float64 `[n, classes]`; rows sum to 1.
        labels: int64 `[n]`.
        top: how many of the largest probabilities count for `top5`.

    Returns:
        A function from int `[samples, n]`, how often each image is in each sample, to the metrics by their names in
        `classification_metrics`. Those of the class with index i are named `precision/i`, `recall/i` and `f1/i`.
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
    # What each image adds to a bin of the calibration error. One matrix product sums this and the means.
    gaps = np.eye(BINS)[bin_of(confidence)] * (right - confidence)[:, None]
    summands = np.concatenate([np.stack(list(means.values()), axis=1), gaps], axis=1)
    # What each image adds to the counts of its classes. Sparse, because 1,000 classes would mean 240 MB of zeros for 10,000 images.
    of_hits, of_support, of_predictions = (
        sparse.csr_array((weights.astype(np.float64), (np.arange(count), of_class)), shape=(count, classes))
        for weights, of_class in ((right, labels), (np.ones(count), labels), (np.ones(count), predicted))
    )

    def statistics(times: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        weights, images = times.astype(np.float64), times.sum(axis=1)
        sums, gap_sums = np.split(weights @ summands, [len(means)], axis=1)
        # Stored by rows, because the order of a sum over classes, and so its rounding, depends on the memory layout.
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
    """Return the means over classes, the weighted means, and the rates of each class, from counts `[samples, classes]`."""
    rates = {
        "precision": hits / np.maximum(predictions, 1),
        "recall": hits / np.maximum(support, 1),
        "f1": 2 * hits / np.maximum(predictions + support, 1),
    }
    images, classes = support.sum(axis=1), support.shape[1]
    return {
        # Over the classes that occur in a sample. A class that does not has no hits.
        "balanced_accuracy": rates["recall"].sum(axis=1) / (support > 0).sum(axis=1),
        **{f"macro_{name}": values.mean(axis=1) for name, values in rates.items()},
        **{f"weighted_{name}": (values * support).sum(axis=1) / images for name, values in rates.items()},
        **{f"{name}/{index}": values[:, index] for name, values in rates.items() for index in range(classes)},
    }


class McNemar(NamedTuple):
    """The result of McNemar's test of two models on the same images."""

    only_first: int  # images that only the first model gets right
    only_second: int
    p_value: float  # probability of a difference at least as large, if both were equally good


def mcnemar(first_right: NDArray[np.bool_], second_right: NDArray[np.bool_]) -> McNemar:
    """Return McNemar's test of whether two models differ in accuracy, by the images that only one of them gets right.

    This is the exact form of the test (Psychometrika 12, 1947). If the models were equally good, each of those images would be one that
    the first model gets right with probability 1/2.

    Args:
        first_right: bool `[n]`, whether the first model is right about each image.
        second_right: bool `[n]`, the same for the second model.

    Raises:
        ValueError: the arrays are not about equally many images.

    Examples:
        Six of eight images are right with the first model only:

        >>> first, second = np.array([True] * 8), np.array([True] * 2 + [False] * 6)
        >>> test = mcnemar(first, second)
        >>> test.only_first, test.only_second, round(test.p_value, 3)
        (6, 0, 0.031)
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
