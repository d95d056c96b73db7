"""How far a classifier's probabilities can be trusted, and the temperature that makes them better.

The expected calibration error, the reliability diagram and temperature scaling are those of Guo et al., "On Calibration of
Modern Neural Networks" (arXiv:1706.04599, sections 2 and 4.2).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

BINS = 15  # as in the paper
DRAWN_TOGETHER = 1_000_000  # images of all draws or samples that are looked at together: 8 MB
# A temperature outside means logits that are a thousand times too small or too large: no model that was trained.
TEMPERATURES = (1e-3, 1e3)


class Reliability(NamedTuple):
    """A reliability diagram: confidences in bins of equal width, `(b / BINS, (b + 1) / BINS]`."""

    images: NDArray[np.int64]  # [BINS], predictions whose confidence lies in the bin
    confidence: NDArray[np.float64]  # [BINS], their mean confidence; NaN in an empty bin
    accuracy: NDArray[np.float64]  # [BINS], the fraction of them that is right; NaN in an empty bin


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float64]:
    """Return the probabilities, float64 `[n, classes]`, of finite logits `[n, classes]` over a temperature; each row sums to 1."""
    scaled = logits.astype(np.float64) / temperature
    # Less the largest of the row, so that exp cannot overflow; the quotient is the same.
    exponentials: NDArray[np.float64] = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials


def reliability(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> Reliability:
    """Sort predictions by their confidence, which is the largest probability of a row.

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
    """Return the bin of each confidence, `[n]`, 0..BINS - 1; a bin's upper end belongs to it."""
    return np.clip(np.ceil(confidences * BINS).astype(np.int64) - 1, 0, BINS - 1)


def expected_calibration_error(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return `sum over bins of count / n * |accuracy - confidence|` (arXiv:1706.04599, equation 3), 0..1, with `BINS` bins."""
    diagram = reliability(probabilities, labels)
    gaps = np.abs(diagram.accuracy - diagram.confidence)
    return float(np.nansum(diagram.images * gaps) / diagram.images.sum())


def calibration_error_by_chance(
    probabilities: NDArray[np.float64], *, seed: int, draws: int = 2000
) -> tuple[float, float]:
    """Return the calibration error that these probabilities show by chance where they are all right.

    It is not 0, because of few images in a bin the fraction that is right is never just the confidence. Each draw makes every
    prediction right with the probability that it has (Bröcker and Smith, Weather and Forecasting 22, 2007, section 3).

    Args:
        probabilities: float64 `[n, classes]`; rows sum to 1.
        seed: of the draws.
        draws: how many.

    Returns:
        The mean over the draws, and what 97.5 % of them are below; 0..1.
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

    Predictions stay as they are. Fit it on validation, never on the images that it is reported on.

    Args:
        logits: float32 `[n, classes]`, finite.
        labels: int64 `[n]`.

    Returns:
        T between 0.001 and 1000; where all predictions are right, one that is so small that no less makes a difference.
    """
    rows = np.arange(len(labels))

    def cross_entropy(log_temperature: float) -> float:
        scaled = logits.astype(np.float64) / np.exp(log_temperature)
        return float((logsumexp(scaled, axis=1) - scaled[rows, labels]).mean())

    # Convex in 1 / T, so it has one minimum in log T too.
    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(cross_entropy, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))
