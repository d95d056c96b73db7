"""Lay out metrics as plain-text tables for the terminal."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from cifar_keras.evaluation.metrics import RATES, is_imbalanced
from cifar_keras.evaluation.uncertainty import Difference, McNemar

WIDTH = 80
COLUMNS = ("precision", "recall", "F1", "images")
COLUMN_WIDTH = 11
LISTED_CLASSES = 20  # at most


def metrics_table(metrics: dict[str, Any], title: str) -> str:
    """Return a table of what `metrics.classification_metrics` returned.

    Args:
        metrics: the dict of `classification_metrics`. Rates are printed as percentages with two decimals, the loss in nats.
        title: what was measured, e.g. "CIFAR-10 test split".

    Returns:
        Lines of at most 80 columns without a newline at the end. Names that are too long for their column end in "...". With more than
        `LISTED_CLASSES` classes, those with the lowest F1 are listed. Balanced accuracy and the weighted means are left out if all
        classes have about equally many images: there they say nothing new.
    """
    imbalanced = is_imbalanced(values["support"] for values in metrics["per_class"].values())
    listed = lowest_f1(metrics["per_class"], LISTED_CLASSES)
    heading = textwrap.wrap(f"{title}, {metrics['n']:,} images", WIDTH)
    # Among five classes or fewer, every label is among the five most probable ones.
    top5 = f"   top-5 {_percent(metrics['top5'])} %" if len(metrics["per_class"]) > 5 else ""
    headline = f"accuracy {with_interval(metrics, 'accuracy')}{top5}   loss {metrics['loss']:.4f}"
    if imbalanced:
        headline += f"\nbalanced accuracy {with_interval(metrics, 'balanced_accuracy')}"
    longest = max(len(name) for name in ("weighted mean", *listed))
    name_width = min(longest, WIDTH - len(COLUMNS) * COLUMN_WIDTH)
    head = _row("class, in %", COLUMNS, name_width := max(name_width, len("class, in %")))
    rows = [
        _row(name, (*_percentages(values, ""), f"{values['support']:,}"), name_width) for name, values in listed.items()
    ]
    if left_out := len(metrics["per_class"]) - len(listed):
        rows.append(f"and {left_out:,} classes with a higher F1")
    means = [line for kind in ("macro", "weighted")[: 1 + imbalanced] for line in _mean_rows(metrics, kind, name_width)]
    rule = "-" * len(head)
    return "\n".join([*heading, headline, "", head, rule, *rows, rule, *means])


def _mean_rows(metrics: Mapping[str, Any], kind: str, name_width: int) -> list[str]:
    """Return a row with the means of the rates over the classes, and one with their intervals."""
    ends = [metrics["intervals"][f"{kind}_{rate}"] for rate in RATES]
    intervals = tuple(f"{_short(low)}-{_short(high)}" for low, high in ends)
    return [
        _row(f"{kind} mean", (*_percentages(metrics, f"{kind}_"), f"{metrics['n']:,}"), name_width),
        _row("  95 %", (*intervals, ""), name_width).rstrip(),
    ]


def _short(fraction: float) -> str:
    """Return a percentage in four characters at most."""
    return "100" if fraction > 0.9995 else f"{100 * fraction:.1f}"


def lowest_f1(per_class: Mapping[str, Mapping[str, Any]], count: int) -> dict[str, Mapping[str, Any]]:
    """Return the metrics of at most `count` classes, those with the lowest F1, in the order of `per_class`.

    Examples:
        >>> list(lowest_f1({"cat": {"f1": 0.8}, "dog": {"f1": 0.9}, "frog": {"f1": 0.7}}, count=2))
        ['cat', 'frog']
    """
    lowest = sorted(per_class, key=lambda name: per_class[name]["f1"])[:count]
    return {name: values for name, values in per_class.items() if name in set(lowest)}


def comparison_table(names: Sequence[str], results: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with a row for each run.

    Args:
        names: the names of the runs.
        results: what the `result.json` of each run says.

    Returns:
        Lines without a newline at the end, as wide as the longest name requires.
    """
    rows = [("run", "test accuracy, 95 % interval", "loss", "calibrated", "minutes", "PFLOP")]
    for name, result in zip(names, results, strict=True):
        test, calibrated = result["test"], result["calibration"]["test"]
        rows.append(
            (
                name,
                with_interval(test, "accuracy"),
                f"{test['loss']:.4f}",
                f"{calibrated['loss']:.4f}",
                f"{result['minutes']['total']:.1f}",
                pflop_in_words(result),
            )
        )
    return _aligned(rows, names=1)


def pflop_in_words(result: Mapping[str, Any]) -> str:
    """Return the operations of a run's training in 10^15, or "-" for a run from before they were counted."""
    return f"{result['training_pflop']:.3g}" if "training_pflop" in result else "-"


def differences_table(pairs: Sequence[tuple[str, str, McNemar]]) -> str:
    """Return a table of McNemar's test of each pair of runs, as lines without a newline at the end."""
    rows = [("first", "second", "only first right", "only second right", "p")]
    rows += [
        (first, second, f"{test.only_first:,}", f"{test.only_second:,}", f"{test.p_value:.2g}")
        for first, second, test in pairs
    ]
    return _aligned(rows, names=2)


def averages_table(names: Sequence[str], results: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of the test metrics in which classes with few images count, with a row for each run.

    A metric that an older run did not measure is "-".
    """
    columns = {
        "balanced accuracy, 95 % interval": ("test", "balanced_accuracy"),
        "macro F1, 95 % interval": ("test", "macro_f1"),
        "weighted F1, 95 % interval": ("test", "weighted_f1"),
        "calibration error as served": ("calibrated", "calibration_error"),
    }
    rows = [("run", *columns)]
    for name, result in zip(names, results, strict=True):
        measured = {"test": result["test"], "calibrated": result["calibration"]["test"]}
        cells = (
            with_interval(measured[part], metric) if metric in measured[part].get("intervals", ()) else "-"
            for part, metric in columns.values()
        )
        rows.append((name, *cells))
    return _aligned(rows, names=1)


def paired_table(pairs: Sequence[tuple[str, str, Mapping[str, Difference]]]) -> str:
    """Return a table of how far the second run of each pair is above the first, in percentage points with intervals.

    Args:
        pairs: the names of two runs, and what `paired_differences` returned for them: the same metrics for each pair.
    """
    rows = [
        (
            "first",
            "second",
            *(f"{in_words(name)} of second - first" for name in pairs[0][2]),
        )
    ]
    for first, second, found in pairs:
        cells = (
            f"{100 * each.value:+.2f} ({100 * each.interval.low:+.2f} to {100 * each.interval.high:+.2f})"
            for each in found.values()
        )
        rows.append((first, second, *cells))
    return _aligned(rows, names=2)


def robustness_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of rows of `robustness.row`, as lines without a newline at the end."""
    cells = [("robustness", "images", "accuracy, 95 % interval", "loss", "calibration error")]
    cells += [
        (
            f"{row['kind']}: {row['name']}",
            f"{row['n']:,}",
            with_interval(row, "accuracy"),
            f"{row['loss']:.4f}",
            with_interval(row, "calibration_error"),
        )
        for row in rows
    ]
    return _aligned(cells, names=1)


def unknown_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table of what `robustness.on_unknown` returned, by the name of the images, as lines without a newline at the end."""
    cells = [
        ("known against unknown", "known", "unknown", "AUROC, 95 % interval", "unknown accepted with 95 % of the known")
    ]
    cells += [
        (
            name,
            f"{values['known']:,}",
            f"{values['unknown']:,}",
            with_interval(values, "auroc"),
            with_interval(values, "false_positive_rate"),
        )
        for name, values in found.items()
    ]
    return _aligned(cells, names=1)


def exports_table(exports: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table of what `export` found for each format, as lines without a newline at the end."""
    cells = [
        (
            "format",
            "MB",
            "of float32",
            "logits differ",
            "same class",
            "accuracy, 95 % interval",
            "images/s",
            "within bounds",
        )
    ]
    cells += [
        (
            name,
            f"{export['bytes'] / 1e6:.1f}",
            f"{_percent(export['share_of_float32'])} %",
            f"{export['logit_difference']:.1e}",
            f"{_percent(export['agreement'])} %",
            with_interval(export, "accuracy"),
            f"{export['images_per_second']:.0f}",
            "yes" if export["within_bounds"] else "NO",
        )
        for name, export in exports.items()
    ]
    return _aligned(cells, names=1)


def in_words(metric: str) -> str:
    """Return the key of a metric as a page says it.

    Examples:
        >>> in_words("balanced_accuracy"), in_words("macro_f1")
        ('balanced accuracy', 'macro F1')
    """
    return metric.replace("_", " ").replace("f1", "F1")


def with_interval(metrics: Mapping[str, Any], name: str) -> str:
    """Return a rate in percent, with the interval in which it lies.

    Examples:
        >>> with_interval({"accuracy": 0.9079, "intervals": {"accuracy": [0.9022, 0.9135]}}, "accuracy")
        '90.79 % (90.22 to 91.35)'
    """
    low, high = metrics["intervals"][name]
    return f"{_percent(metrics[name])} % ({_percent(low)} to {_percent(high)})"


def _percentages(values: Mapping[str, Any], prefix: str) -> list[str]:
    return [_percent(values[prefix + key]) for key in RATES]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _row(name: str, cells: tuple[str, ...], name_width: int) -> str:
    shown = name if len(name) <= name_width else name[: name_width - 3] + "..."
    return shown.ljust(name_width) + "".join(cell.rjust(COLUMN_WIDTH) for cell in cells)


def _aligned(rows: Sequence[tuple[str, ...]], *, names: int) -> str:
    """Return rows as aligned columns. The first `names` columns are names; the others are numbers, which end where their heading ends."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < names else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
