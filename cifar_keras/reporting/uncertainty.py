"""How sure a figure is: bootstrap intervals for a model, and McNemar's test between two."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cifar_keras.reporting.calibration import BINS, bin_of

RESAMPLES = 2000
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """Where a figure lies, with a confidence of 95 %."""

    low: float
    high: float


Statistics = Callable[[NDArray[np.int64]], dict[str, float]]


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
        statistics: figures, none below 0, of a sample in which each image is there as often as `[count]` says.
        count: images.
        seed: of the resamples.
        resamples: how many; each draws `count` images with replacement.
    """
    generator = np.random.default_rng(seed)
    of_sample = statistics(np.ones(count, np.int64))
    names = list(of_sample)
    drawn = np.empty((resamples, len(names)))
    for resample in drawn:
        times = np.bincount(generator.integers(count, size=count), minlength=count)
        values = statistics(times)
        resample[:] = [values[name] for name in names]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    estimate = np.array([of_sample[name] for name in names])
    return {
        name: Interval(max(0.0, float(lower)), float(upper))
        for name, lower, upper in zip(names, 2 * estimate - high, 2 * estimate - low, strict=True)
    }


def resampled_metrics(probabilities: NDArray[np.float64], labels: NDArray[np.int64], *, top: int) -> Statistics:
    """Prepare the figures of `metrics.classification_metrics` for samples in which images are there more or less often.

    By sums and counts alone, because there are thousands of samples.

    Args:
        probabilities: float64 `[n, classes]`; rows sum to 1.
        labels: int64 `[n]`.
        top: how many of the largest probabilities count for `top5`.

    Returns:
        From int `[n]`, how often each image is there, to the figures by their names in `classification_metrics`; those of the
        class with index i are named `precision/i`, `recall/i` and `f1/i`.
    """
    count, classes = probabilities.shape
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    of_label = probabilities[np.arange(count), labels]
    right = predicted == labels
    # What each image adds to a mean; ties are broken as scikit-learn breaks them.
    ranked = np.argsort(probabilities, axis=1, kind="stable")[:, ::-1]
    summands = np.stack(
        [
            right,
            (ranked[:, :top] == labels[:, None]).any(axis=1),
            -np.log(np.maximum(of_label, np.finfo(np.float64).eps)),
            (probabilities**2).sum(axis=1) - 2 * of_label + 1,
        ]
    )
    cells, bins, gaps = labels * classes + predicted, bin_of(confidence), right - confidence

    def statistics(times: NDArray[np.int64]) -> dict[str, float]:
        confusion = np.bincount(cells, times, classes**2).reshape(classes, classes)
        hits, support, predictions = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
        rates = {
            "precision": hits / np.maximum(predictions, 1),
            "recall": hits / np.maximum(support, 1),
            "f1": 2 * hits / np.maximum(predictions + support, 1),
        }
        means = dict(zip(("accuracy", "top5", "loss", "brier"), summands @ times / times.sum(), strict=True))
        return {
            **means,
            "calibration_error": np.abs(np.bincount(bins, gaps * times, BINS)).sum() / times.sum(),
            **{f"macro_{name}": values.mean() for name, values in rates.items()},
            **{f"weighted_{name}": values @ support / times.sum() for name, values in rates.items()},
            **{f"{name}/{index}": values[index] for name, values in rates.items() for index in range(classes)},
        }

    return statistics


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
