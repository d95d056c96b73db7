"""Selective prediction: answer only where the largest probability is high enough, and call the rest unknown.

The confidence of a prediction is its largest probability. Coverage is the fraction of images that are answered, and selective risk is
the fraction of those answers that is wrong (El-Yaniv and Wiener, JMLR 11, 2010; Geifman and El-Yaniv, arXiv:1705.08500).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics

from cifar_keras.errors import UserError
from cifar_keras.evaluation.uncertainty import Interval, Statistics, bootstrap_intervals, fraction_interval

# The fraction of known images that is accepted, for the false-positive rate.
ACCEPTED = 0.95


class CoverageCurve(NamedTuple):
    """Coverage and accuracy at each threshold, from the highest threshold to the lowest. Equal confidences are answered together."""

    threshold: NDArray[np.float64]  # [m], each confidence that occurs; images at it or above are answered
    answered: NDArray[np.int64]  # [m], number of images that are answered
    right: NDArray[np.int64]  # [m], number of those answers that are right
    images: int

    @property
    def coverage(self) -> NDArray[np.float64]:
        """The fraction of images that is answered, `[m]`; the last is 1."""
        return self.answered / self.images

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """The fraction of the answers that is right, `[m]`: 1 - selective risk."""
        return self.right / self.answered


def coverage_curve(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> CoverageCurve:
    """Return how many predictions are answered, and how many of those are right, at each threshold of confidence.

    Args:
        probabilities: float `[n, classes]`; rows sum to 1.
        labels: int64 `[n]`, at least one.

    Examples:
        >>> probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]])
        >>> curve = coverage_curve(probabilities, np.array([0, 1, 1]))
        >>> curve.coverage.round(2).tolist(), curve.accuracy.round(2).tolist()
        ([0.33, 0.67, 1.0], [1.0, 0.5, 0.67])
    """
    confidence, right = probabilities.max(axis=1).astype(np.float64), probabilities.argmax(axis=1) == labels
    order = np.argsort(-confidence, kind="stable")
    # Where the next confidence is lower, or there is none.
    ends = np.flatnonzero(np.diff(confidence[order], append=-np.inf))
    return CoverageCurve(confidence[order][ends], ends + 1, np.cumsum(right[order])[ends], len(labels))


def risk_coverage_area(curve: CoverageCurve) -> float:
    """Return the area under the curve of selective risk over coverage, 0..1; 0 is best (Geifman et al., arXiv:1805.08206).

    It is the mean, over k = 1..n, of the risk of the k most confident predictions. Those of equal confidence have no order; each of
    them adds the mean error of all of them.
    """
    wrong = curve.answered - curve.right
    # At every k from 1 to n, the number of wrong answers, on a straight line between the ends of equal confidences.
    count = np.arange(1, curve.images + 1)
    wrong_at = np.interp(count, np.concatenate([[0], curve.answered]), np.concatenate([[0], wrong]))
    return float((wrong_at / count).mean())


class Threshold(NamedTuple):
    """A threshold of confidence, and what it does on the images it was fitted on."""

    probability: float
    images: int
    answered: int
    right: int
    interval: Interval  # of right / answered, with a confidence of 95 %


def fit_threshold(probabilities: NDArray[np.floating], labels: NDArray[np.int64], precision: float) -> Threshold:
    """Return the smallest threshold at which the answers are right often enough: the lower end of their 95 % interval is `precision`.

    The interval is Wilson's, so with the fitted images drawn again, about 97 in 100 thresholds hold what they promise. The threshold is
    chosen among many, for which the interval makes no allowance; Geifman and El-Yaniv (arXiv:1705.08500, algorithm 1) do.

    Args:
        probabilities: float `[n, classes]` of images that the network did not learn from; rows sum to 1.
        labels: int64 `[n]`, at least one.
        precision: the fraction of answers that has to be right, above 0 and below 1.

    Raises:
        UserError: no threshold has this precision on these images. The message has the best that one has.
    """
    curve = coverage_curve(probabilities, labels)
    # A threshold whose answers are right no more often than those of a lower one has a lower bound below the other's. So only the
    # others are looked at, from the lowest on: a few instead of thousands.
    accuracy = curve.accuracy[::-1]
    records = np.flatnonzero(np.diff(np.maximum.accumulate(accuracy), prepend=-1.0))
    best: Threshold | None = None
    for place in (len(accuracy) - 1 - records).tolist():
        answered, right = int(curve.answered[place]), int(curve.right[place])
        interval = fraction_interval(right, answered)
        found = Threshold(float(curve.threshold[place]), curve.images, answered, right, interval)
        if interval.low >= precision:
            return found
        if best is None or interval.low > best.interval.low:
            best = found
    assert best is not None
    raise UserError(
        f"--precision is out of reach: on the {curve.images:,} validation images no threshold has more than {best.interval.low:.4f} for "
        f"certain (at {best.probability:.4f}, {best.right:,} of {best.answered:,} are right). Received: {precision}"
    )


def at_coverage(curve: CoverageCurve, coverage: float) -> Threshold:
    """Return the highest threshold at which at least a fraction `coverage` of the images is answered, above 0 and at most 1."""
    place = int(np.searchsorted(curve.answered, coverage * curve.images - 1e-9))
    answered, right = int(curve.answered[place]), int(curve.right[place])
    return Threshold(float(curve.threshold[place]), curve.images, answered, right, fraction_interval(right, answered))


class Separation(NamedTuple):
    """How well confidence tells known images from unknown ones, whose class the model does not have."""

    auroc: float
    false_positive_rate: float
    intervals: dict[str, Interval]  # by the names of the two above


def separation(known: NDArray[np.floating], unknown: NDArray[np.floating], *, seed: int) -> Separation:
    """Return the AUROC of known against unknown images by their largest probability, and the false-positive rate at 95 %.

    AUROC is the probability that a known image has a higher confidence than an unknown one; equal ones count half. The false-positive
    rate is the fraction of unknown images that is accepted by the threshold which accepts 95 % of the known ones. Both are those of
    Hendrycks and Gimpel (arXiv:1610.02136, section 2), with the known images as positives.

    Args:
        known: float `[n]`, confidences of test images, at least one.
        unknown: float `[m]`, confidences of images of no class, at least one.
        seed: seed of the resamples. Known and unknown images are resampled apart.
    """
    is_known = np.repeat([True, False], [len(known), len(unknown)])
    confidence = np.concatenate([known, unknown])
    accepted_wrongly, accepted, _ = sklearn_metrics.roc_curve(is_known, confidence, drop_intermediate=False)
    intervals = bootstrap_intervals(resampled_separation(known, unknown), [len(known), len(unknown)], seed=seed)
    return Separation(
        float(sklearn_metrics.roc_auc_score(is_known, confidence)),
        float(accepted_wrongly[np.argmax(accepted >= ACCEPTED)]),
        {name: Interval(low, min(1.0, high)) for name, (low, high) in intervals.items()},
    )


def resampled_separation(known: NDArray[np.floating], unknown: NDArray[np.floating]) -> Statistics:
    """Return a function that computes both rates of `separation` for resampled images, by sums alone.

    The function takes int `[samples, n + m]`, how often each image is in each sample, the known ones first. It returns `auroc` and
    `false_positive_rate`.
    """
    confidence = np.concatenate([known, unknown])
    order = np.argsort(-confidence, kind="stable")
    # Where equal confidences begin: they are accepted together.
    starts = np.flatnonzero(np.diff(confidence[order], prepend=np.inf))
    is_known = (order < len(known)).astype(np.int64)

    def statistics(times: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        known_of, unknown_of = (
            np.add.reduceat(times[:, order] * chosen, starts, axis=1) for chosen in (is_known, 1 - is_known)
        )
        accepted, accepted_wrongly = known_of.cumsum(axis=1), unknown_of.cumsum(axis=1)
        count, other = accepted[:, -1:], accepted_wrongly[:, -1:]
        # The known images above each unknown one, and half of those beside it.
        above = ((accepted - known_of / 2) * unknown_of).sum(axis=1, keepdims=True)
        place = np.argmax(accepted / count >= ACCEPTED, axis=1)[:, None]
        rate = np.take_along_axis(accepted_wrongly, place, axis=1) / other
        return {"auroc": (above / count / other)[:, 0], "false_positive_rate": rate[:, 0]}

    return statistics
