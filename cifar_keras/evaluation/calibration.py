"""Calibration: measure how far a classifier's probabilities can be trusted, and fit the temperature that makes them better.

The expected calibration error, the reliability diagram and temperature scaling are those of Guo et al., "On Calibration of
Modern Neural Networks" (arXiv:1706.04599, sections 2 and 4.2).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

BINS = 15  # as in the paper
# The number of images, over all draws or samples, that are computed at once: 8 MB.
DRAWN_TOGETHER = 1_000_000
# A temperature outside this range means that logits are a thousand times too small or too large. No trained model has such logits.
TEMPERATURES = (1e-3, 1e3)


class Reliability(NamedTuple):
    """A reliability diagram: confidences in bins of equal width, `(b / BINS, (b + 1) / BINS]`."""

    images: NDArray[np.int64]  # [BINS], predictions whose confidence lies in the bin
    confidence: NDArray[np.float64]  # [BINS], their mean confidence; NaN in an empty bin
    accuracy: NDArray[np.float64]  # [BINS], the fraction of them that is right; NaN in an empty bin


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float64]:
    """Return the probabilities of logits that are divided by a temperature.

    Args:
        logits: float32 `[n, classes]`, finite.
        temperature: the divisor; a higher one brings the probabilities closer together.

    Returns:
        float64 `[n, classes]`; each row sums to 1.

    Examples:
        >>> logits = np.array([[0.0, np.log(3)]], np.float32)
        >>> softmax(logits).round(2).tolist()
        [[0.25, 0.75]]
        >>> softmax(logits, temperature=2).round(2).tolist()
        [[0.37, 0.63]]
    """
    scaled = logits.astype(np.float64) / temperature
    # The largest logit of the row is subtracted, so that exp cannot overflow. The quotient stays the same.
    exponentials: NDArray[np.float64] = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials


def reliability(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> Reliability:
    """Return the reliability diagram of predictions. The confidence of a prediction is the largest probability of its row.

    Args:
        probabilities: float64 `[n, classes]`; rows sum to 1.
        labels: int64 `[n]`.
    """
    confidences = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    members = bin_of(confidences)
    count = np.bincount(members, minlength=BINS)
    with np.errstate(invalid="ignore"):
        return Reliability(
            count,
            np.bincount(members, confidences, minlength=BINS) / count,
            np.bincount(members, right, minlength=BINS) / count,
        )


def bin_of(confidences: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the bin of each confidence, `[n]`, 0..BINS - 1. The upper end of a bin belongs to it."""
    return np.clip(np.ceil(confidences * BINS).astype(np.int64) - 1, 0, BINS - 1)


def expected_calibration_error(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the expected calibration error, 0..1, with `BINS` bins (arXiv:1706.04599, equation 3).

    It is `sum over bins of count / n * |accuracy - confidence|`.

    Args:
        probabilities: float64 `[n, classes]`; rows sum to 1.
        labels: int64 `[n]`.

    Examples:
        Four predictions are 80 % sure each, and three of them are right:

        >>> probabilities = np.array([[0.8, 0.2]] * 4)
        >>> round(expected_calibration_error(probabilities, np.array([0, 0, 0, 1])), 3)
        0.05
    """
    diagram = reliability(probabilities, labels)
    gaps = np.abs(diagram.accuracy - diagram.confidence)
    return float(np.nansum(diagram.images * gaps) / diagram.images.sum())


def calibration_error_by_chance(
    probabilities: NDArray[np.float64], *, seed: int, draws: int = 2000
) -> tuple[float, float]:
    """Return the calibration error that these probabilities show by chance if all of them are correct.

    This error is not 0: among the few images of a bin, the fraction that is right never equals the confidence exactly. Each draw makes
    every prediction right with its own probability (Bröcker and Smith, Weather and Forecasting 22, 2007, section 3).

    Args:
        probabilities: float64 `[n, classes]`; rows sum to 1.
        seed: seed of the draws.
        draws: number of draws.

    Returns:
        The mean over the draws, and the value that 97.5 % of them are below; 0..1.
    """
    confidences = probabilities.max(axis=1)
    count, bins = len(confidences), np.eye(BINS)[bin_of(confidences)]
    expected = confidences @ bins
    generator = np.random.default_rng(seed)
    together = max(1, DRAWN_TOGETHER // count)
    errors = []
    for first in range(0, draws, together):
        right = generator.random((min(together, draws - first), count)) < confidences
        errors.append(np.abs(right.astype(np.float64) @ bins - expected).sum(axis=1) / count)
    drawn = np.concatenate(errors)
    return float(drawn.mean()), float(np.quantile(drawn, 0.975))


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the temperature T at which `softmax(logits / T)` has the lowest mean cross-entropy (arXiv:1706.04599, section 4.2).

    The temperature changes no prediction. Fit it on the validation split, never on the images that results are reported on.

    Args:
        logits: float32 `[n, classes]`, finite.
        labels: int64 `[n]`.

    Returns:
        T between 0.001 and 1000. If all predictions are right, T is 1: each smaller T would give a lower cross-entropy, down to
        probabilities of 0 and 1, which few images do not justify.

    Examples:
        The model says 88 % each time, but only three of four predictions are right. T makes it say 75 %:

        >>> logits = np.array([[0.0, 2.0]] * 4, np.float32)
        >>> temperature = fit_temperature(logits, np.array([1, 1, 1, 0]))
        >>> round(temperature, 2)
        1.82
        >>> softmax(logits, temperature)[0].round(2).tolist()
        [0.25, 0.75]
    """
    if (logits.argmax(axis=1) == labels).all():
        return 1.0
    rows = np.arange(len(labels))

    def cross_entropy(log_temperature: float) -> float:
        scaled = logits.astype(np.float64) / np.exp(log_temperature)
        return float((logsumexp(scaled, axis=1) - scaled[rows, labels]).mean())

    # Convex in 1 / T, so it has one minimum in log T too.
    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(cross_entropy, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))
