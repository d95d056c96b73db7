"""Metrics as plain text for the terminal, at most 80 columns wide."""

import textwrap
from typing import Any

WIDTH = 80
COLUMNS = ("precision", "recall", "F1", "images")
COLUMN_WIDTH = 11


def metrics_table(metrics: dict[str, Any], title: str) -> str:
    """Lay out what `metrics.classification_metrics` returns.

    Args:
        metrics: the dict of `classification_metrics`; rates are printed as percentages with two decimals, the loss in nats.
        title: what was measured, e.g. "CIFAR-10 test split".

    Returns:
        Lines of at most 80 columns without a newline at the end; names too long for their column end in "...".
    """
    heading = textwrap.wrap(f"{title}, {metrics['n']:,} images", WIDTH)
    headline = (
        f"accuracy {_percent(metrics['accuracy'])} %   top-5 {_percent(metrics['top5'])} %   loss {metrics['loss']:.4f}"
    )
    longest = max(len(name) for name in ("macro mean", *metrics["per_class"]))
    name_width = min(longest, WIDTH - len(COLUMNS) * COLUMN_WIDTH)
    head = _row("class, in %", COLUMNS, name_width := max(name_width, len("class, in %")))
    rows = [
        _row(name, (*_percentages(values, ""), f"{values['support']:,}"), name_width)
        for name, values in metrics["per_class"].items()
    ]
    mean = _row("macro mean", (*_percentages(metrics, "macro_"), f"{metrics['n']:,}"), name_width)
    rule = "-" * len(head)
    return "\n".join([*heading, headline, "", head, rule, *rows, rule, mean])


def _percentages(values: dict[str, Any], prefix: str) -> list[str]:
    return [_percent(values[prefix + key]) for key in ("precision", "recall", "f1")]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _row(name: str, cells: tuple[str, ...], name_width: int) -> str:
    shown = name if len(name) <= name_width else name[: name_width - 3] + "..."
    return shown.ljust(name_width) + "".join(cell.rjust(COLUMN_WIDTH) for cell in cells)
