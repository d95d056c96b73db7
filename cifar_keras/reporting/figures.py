"""Draw the pictures of a run as PNG bytes.

Each picture is drawn on a figure of its own, without pyplot. So it changes no state of the program that draws it, and needs no display.
Colour-blind readers can tell the colours apart (Okabe and Ito, https://jfly.uni-koeln.de/color/), and nothing is shown by colour alone.
"""

import functools
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter
from numpy.typing import NDArray
from PIL import Image

from cifar_keras.data.types import Images
from cifar_keras.evaluation.calibration import expected_calibration_error, reliability, softmax
from cifar_keras.evaluation.galleries import most_confused_classes, spread_over_confidence
from cifar_keras.evaluation.selective import coverage_curve
from cifar_keras.evaluation.uncertainty import fraction_interval
from cifar_keras.reporting.lettering import drawable, families, font, text_width

BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#00775A", "#555555"
DOTS_PER_INCH = 110
CELL_INCHES = 1.35
HEADING_INCHES = 0.5
# Answers from which on the accuracy over coverage is drawn, and the points at which its interval is computed.
FEWEST_ANSWERED, BAND_POINTS = 20, 100
RUN_LETTERS = 56  # at most, of the name of a run in a legend
PANEL_LETTERS = 18  # at most, of a class above its panel of the feature map
DRAWN_CLASSES = 20  # at most, in a picture; more names could not be read
CAPTION_FONT, HEADING_FONT, LABEL_FONT = font("normal", 9), font("bold", 12), font("normal", 10)

Drawing = ParamSpec("Drawing")


def _png(draw: Callable[Drawing, Figure]) -> Callable[Drawing, bytes]:
    """Return a function that returns the figure of `draw` as a PNG file, in matplotlib's own style instead of the user's.

    Afterwards the settings of a `matplotlibrc`, or of the calling program, hold again. Names are text: a `$` in a name begins no formula.
    """

    @functools.wraps(draw)
    def png(*arguments: Drawing.args, **settings: Drawing.kwargs) -> bytes:
        buffer = io.BytesIO()
        style = {"text.parse_math": False, "font.family": families()}
        with matplotlib.style.context(["default", style]):
            draw(*arguments, **settings).savefig(buffer, format="png", facecolor="white")
        return buffer.getvalue()

    return png


class _Series(NamedTuple):
    """How a line of the learning curves is drawn."""

    key: str
    name: str
    style: dict[str, Any]


class _Group(NamedTuple):
    """Images under a heading of their own."""

    heading: str
    color: str
    images: NDArray[np.uint8]
    captions: Sequence[str]


# With a marker, because a short run has a single record, which no line would show.
_TRAIN_STYLE = {"color": BLUE, "linewidth": 1.0, "marker": ".", "markersize": 2.5}
_VALIDATION_STYLE = {"color": VERMILION, "linewidth": 1.6, "linestyle": "--", "marker": "o", "markersize": 5}


_FOR_AND_AGAINST = LinearSegmentedColormap.from_list("for and against", [BLUE, "white", VERMILION])

# The styles differ in marker and stroke too, not only in colour.
_RUN_STYLES = [
    {"color": color, "marker": marker, "linestyle": stroke}
    for stroke, markers in (("-", "os^D"), ("--", "vP*X"))
    for color, marker in zip((BLUE, VERMILION, GREEN, GREY), markers, strict=True)
]


@_png
def confusion_matrix_picture(
    confusion_matrix: Sequence[Sequence[int]] | NDArray[np.int64], class_names: Sequence[str]
) -> Figure:
    """Draw a confusion matrix: counts in the cells, coloured by their fraction of the row.

    The colour scale grows with the square root of the fraction, so that a confusion of 1 % can be told from none. With more than
    `DRAWN_CLASSES` classes, those with the most errors are drawn; fractions and accuracy are still those of all images.

    Args:
        confusion_matrix: counts `[classes, classes]`, rows are true classes and columns predictions.
        class_names: the name of each class.

    Raises:
        ValueError: the matrix is not square or does not fit the names.
    """
    counts = np.asarray(confusion_matrix, dtype=np.int64)
    classes = len(class_names)
    if counts.shape != (classes, classes):
        raise ValueError(f"the confusion matrix has to be [{classes}, {classes}]. Received: shape {counts.shape}")
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    total, right = int(counts.sum()), int(np.trace(counts))
    drawn = most_confused_classes(counts, DRAWN_CLASSES)
    counts, fractions, names = (
        counts[np.ix_(drawn, drawn)],
        fractions[np.ix_(drawn, drawn)],
        [drawable(class_names[i]) for i in drawn],
    )
    # Names of ten letters fit without more room.
    side, longer = 0.62 * len(drawn), max(0.0, max(text_width(name, LABEL_FONT) for name in names) - 1.0)
    figure = _new_figure(side + 2.5 + longer, side + 1.6 + longer)
    axes = figure.subplots()
    image = axes.imshow(fractions, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if fractions[row, column] > 0.35 else "black"
        axes.text(column, row, f"{count}", ha="center", va="center", color=color, fontsize=10)
    axes.set_xticks(
        range(len(drawn)), names, rotation=45, ha="right", rotation_mode="anchor", fontproperties=LABEL_FONT
    )
    axes.set_yticks(range(len(drawn)), names, fontproperties=LABEL_FONT)
    axes.set_xlabel("predicted", fontsize=11)
    axes.set_ylabel("true", fontsize=11)
    left_out = f"\nthe {len(drawn)} of {classes:,} classes with the most errors" if len(drawn) < classes else ""
    axes.set_title(f"accuracy {100 * right / max(total, 1):.2f} %, n = {total:,}{left_out}", fontsize=12)
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.02, ticks=[0, 0.01, 0.05, 0.25, 0.5, 1])
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    bar.set_label("fraction of the true class", fontsize=10)
    return figure


@_png
def corruptions_picture(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the accuracy on corrupted images: a row for each corruption, a column for each severity.

    Args:
        rows: the rows of `robustness.with_corruptions`. `name` is "none", or a corruption and its severity; `accuracy` is a fraction.
    """
    accuracy = {row["name"]: row["accuracy"] for row in rows}
    corrupted = [name.rpartition(" ")[::2] for name in accuracy if name != "none"]
    names, severities = (list(dict.fromkeys(column)) for column in zip(*corrupted, strict=True))
    fractions = np.array([[accuracy[f"{name} {severity}"] for severity in severities] for name in names])
    figure = _new_figure(0.85 * len(severities) + 2.6, 0.5 * len(names) + 1.5)
    axes = figure.subplots()
    image = axes.imshow(fractions, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (row, column), fraction in np.ndenumerate(fractions):
        color = "black" if fraction > 0.55 else "white"
        axes.text(column, row, f"{100 * fraction:.1f}", ha="center", va="center", color=color, fontsize=10)
    axes.set_xticks(range(len(severities)), severities, fontsize=10)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=10)
    axes.set_xlabel("severity", fontsize=11)
    axes.set_title(f"accuracy in %; {100 * accuracy['none']:.1f} without corruption", fontsize=12)
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.02)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    return figure


@_png
def predictions_picture(
    images: Images,
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    class_names: Sequence[str],
    *,
    columns: int = 8,
    rows: int = 2,
) -> Figure:
    """Draw right predictions above wrong ones, each with its probability.

    Each group is sorted from the most to the least confident; ties keep the order of the images. If a group has more images than places,
    it shows images at even distances in that order, including the first and the last. So the same predictions always give the same
    picture, and it shows neither only the best nor only the worst.

    Args:
        images: uint8 `[n, height, width, 3]`, RGB.
        labels: int64 `[n]`, true classes.
        probabilities: float64 `[n, classes]`; rows sum to 1.
        class_names: the name of each class.
        columns: images in a row.
        rows: rows of each group.

    Raises:
        ValueError: the numbers of images, labels and probabilities differ.
    """
    if not len(images) == len(labels) == len(probabilities):
        raise ValueError(
            f"images, labels and probabilities have to be equally many. "
            f"Received: {len(images)}, {len(labels)} and {len(probabilities)}"
        )
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    right = predicted == labels
    groups = []
    for heading, members, color in (
        ("\u2713 Right", np.flatnonzero(right), GREEN),
        ("\u2717 Wrong", np.flatnonzero(~right), VERMILION),
    ):
        shown = members[spread_over_confidence(confidence[members], columns * rows)]
        captions = [
            drawable(
                f"{class_names[predicted[index]]} {confidence[index]:.2f}"
                + ("" if right[index] else f",\nis {class_names[labels[index]]}")
            )
            for index in shown
        ]
        order = ", from the most to the least confident" if len(members) > 1 else ""
        groups.append(_Group(f"{heading}: {len(members):,} of {len(labels):,}{order}", color, images[shown], captions))
    return _groups_picture(groups, columns)


@_png
def reliability_picture(logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float) -> Figure:
    """Draw the reliability diagram: how often predictions are right against how sure they are, as served and without temperature.

    Bars are 95 % intervals of the fractions, by Wilson's score, which stays between 0 and 1 for the few images of a bin. The lower panel
    shows the number of predictions in each bin.

    Args:
        logits: float32 `[n, classes]`, finite.
        labels: int64 `[n]`.
        temperature: what `calibration.fit_temperature` returned.
    """
    figure = _new_figure(5.6, 6.4)
    fractions, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    fractions.plot([0, 1], [0, 1], color=GREY, linewidth=1.0, linestyle=":", label="as sure as right")
    for name, divisor, style in (
        ("without temperature", 1.0, {"color": VERMILION, "marker": "s", "linestyle": "--"}),
        (f"as served, at temperature {temperature:.2f}", temperature, {"color": BLUE, "marker": "o", "linestyle": "-"}),
    ):
        probabilities = softmax(logits, divisor)
        diagram = reliability(probabilities, labels)
        filled = diagram.images > 0
        count, confidence, accuracy = (values[filled] for values in diagram)
        error = 100 * expected_calibration_error(probabilities, labels)
        right = np.rint(accuracy * count).astype(int)
        intervals = [fraction_interval(*pair) for pair in zip(right.tolist(), count.tolist(), strict=True)]
        fractions.errorbar(
            confidence,
            accuracy,
            yerr=np.abs(np.transpose(intervals) - accuracy),
            label=f"{name}: calibration error {error:.1f} %",
            linewidth=1.4,
            markersize=4.5,
            capsize=2,
            **style,
        )
        counts.plot(confidence, count, linewidth=1.4, markersize=4.5, **style)
    fractions.set_ylabel("fraction that is right", fontsize=10)
    # The legend is outside, because curves can lie anywhere.
    figure.legend(frameon=False, fontsize=9, loc="outside upper left")
    counts.set_ylabel("images", fontsize=10)
    _log_scale(counts)
    counts.set_xlabel("confidence: the largest probability", fontsize=10)
    for axes in (fractions, counts):
        _plain(axes)
    figure.align_ylabels()
    return figure


@_png
def coverage_picture(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> Figure:
    """Draw accuracy over coverage: how many answers are right if only the most confident ones are given.

    The lower panel shows the threshold of each coverage. The band is the 95 % interval of the accuracy, by Wilson's score. The curve begins
    where `FEWEST_ANSWERED` images are answered, or a tenth of all if that is fewer.

    Args:
        probabilities: float64 `[n, classes]`, as served; rows sum to 1.
        labels: int64 `[n]`.
    """
    curve = coverage_curve(probabilities, labels)
    shown = curve.answered >= min(FEWEST_ANSWERED, curve.images // 10)
    coverage, accuracy, threshold = (values[shown] for values in (curve.coverage, curve.accuracy, curve.threshold))
    # Of so many points of the curve, because each interval takes 0.1 ms.
    drawn = np.unique(np.linspace(0, len(coverage) - 1, BAND_POINTS).round().astype(int))
    counts = zip(curve.right[shown][drawn].tolist(), curve.answered[shown][drawn].tolist(), strict=True)
    low, high = np.transpose([fraction_interval(*pair) for pair in counts])
    figure = _new_figure(5.6, 5.6)
    rates, thresholds = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    rates.fill_between(coverage[drawn], low, high, color=BLUE, alpha=0.2, linewidth=0, label="95 % interval")
    rates.plot(coverage, accuracy, color=BLUE, linewidth=1.4, label="accuracy of the answers")
    rates.axhline(accuracy[-1], color=GREY, linewidth=1.0, linestyle=":", label="accuracy of all images")
    rates.set_ylabel("answers that are right", fontsize=10)
    thresholds.plot(coverage, threshold, color=VERMILION, linewidth=1.4, linestyle="--", label="threshold")
    thresholds.set_ylabel("lowest probability\nthat is answered", fontsize=10)
    thresholds.set_xlabel("coverage: images that are answered, the most confident first", fontsize=10)
    figure.legend(frameon=False, fontsize=9, loc="outside upper left", ncols=2)
    thresholds.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    rates.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    thresholds.set_xlim(0, 1)
    thresholds.set_ylim(0, 1.02)
    for axes in (rates, thresholds):
        _plain(axes)
    figure.align_ylabels()
    return figure


@_png
def attribution_picture(
    images: NDArray[np.uint8],
    columns: Sequence[tuple[str, NDArray[np.float32]]],
    titles: Sequence[str],
) -> Figure:
    """Draw images, and next to each image the attribution maps of its prediction.

    Args:
        images: uint8 `[n, height, width, 3]`, RGB, at least one.
        columns: headings and maps, float32 `[n, rows, columns]` of any resolution. Positive values speak for a class and are drawn in
            orange; negative values speak against it and are drawn in blue.
        titles: one for each image.
    """
    size, titles = 1 + len(columns), [drawable(title) for title in titles]
    cell_width = _cell_width([*titles, *(heading for heading, _ in columns)])
    figure = _new_figure(size * cell_width, _grid_height(titles, 1))
    cells = figure.subplots(len(images), size, squeeze=False)
    height, width = images.shape[1:3]
    for row, image, title in zip(cells, images, titles, strict=True):
        for axes in row:
            axes.set_axis_off()
            axes.imshow(image, extent=(0, width, height, 0), interpolation="nearest")
        row[0].set_title(title, fontproperties=CAPTION_FONT, pad=3)
    for place, (heading, maps) in enumerate(columns, start=1):
        limit = max(float(np.abs(maps).max()), 1e-12)
        for axes, values in zip(cells[:, place], maps, strict=True):
            axes.set_title(heading, fontproperties=CAPTION_FONT, pad=3)
            # Small values are transparent, so that the image below can be seen.
            axes.imshow(
                values,
                extent=(0, width, height, 0),
                cmap=_FOR_AND_AGAINST,
                vmin=-limit,
                vmax=limit,
                alpha=np.clip(np.abs(values) / limit, 0, 1) * 0.75,
                interpolation="nearest",
            )
    return figure


@_png
def feature_map_picture(
    points: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    fractions: NDArray[np.float64],
) -> Figure:
    """Draw images as points, in a panel for each class: the images of the class are dark, all others behind them are grey.

    Not everybody can tell ten colours in one cloud apart; everybody can tell ten panels apart. With more than `DRAWN_CLASSES` classes,
    those at even distances in their order have panels.

    Args:
        points: float32 `[n, 2]`, e.g. two principal components of the features of the images.
        labels: int64 `[n]`.
        class_names: the name of each class.
        fractions: float64 `[2]` or longer, the fractions of the variance that the two directions have.
    """
    count = min(DRAWN_CLASSES, len(class_names))
    drawn = np.linspace(0, len(class_names) - 1, count).round().astype(int)
    columns = min(5, count)
    rows = math.ceil(count / columns)
    figure = _new_figure(2.1 * columns, 2.2 * rows + 0.5)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for index, axes in zip(drawn, panels, strict=False):
        own = labels == index
        axes.scatter(points[~own, 0], points[~own, 1], s=1, color="#d0d0d0", linewidths=0, rasterized=True)
        axes.scatter(points[own, 0], points[own, 1], s=3, color=BLUE, linewidths=0, rasterized=True)
        axes.set_title(f"{drawable(class_names[index], PANEL_LETTERS)}, n = {own.sum():,}", fontproperties=CAPTION_FONT)
    if count < len(class_names):
        figure.suptitle(f"{count} of {len(class_names):,} classes", fontproperties=HEADING_FONT)
    figure.supxlabel(f"first principal component, {100 * fractions[0]:.1f} % of the variance", fontsize=10)
    figure.supylabel(f"second, {100 * fractions[1]:.1f} %", fontsize=10)
    return figure


@_png
def image_grid_picture(images: NDArray[np.uint8], titles: Sequence[str], columns: int) -> Figure:
    """Draw images in rows, each under its title, with crisp pixels.

    Args:
        images: uint8 `[n, height, width, 3]`, RGB, at least one.
        titles: one for each image.
        columns: images in a row.

    Raises:
        ValueError: there are no images, or their number is not that of the titles.
    """
    if len(images) == 0 or len(images) != len(titles):
        raise ValueError(f"each image has to have a title. Received: {len(images)} images and {len(titles)} titles")
    columns, titles = min(columns, len(images)), [drawable(title) for title in titles]
    figure = _new_figure(columns * _cell_width(titles), _grid_height(titles, columns))
    _draw_images(figure, images, titles, columns)
    return figure


@_png
def learning_curves_picture(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw loss, accuracy and learning rate of both phases over the global step.

    Args:
        records: lines of `metrics.jsonl`. Each has `phase` ("head" or "finetune"), `step`, which counts through both phases, and
            `learning_rate`. `loss` and `accuracy` are means since the epoch began. The last record of an epoch has `validation_loss`
            and `validation_accuracy` too. Accuracies are fractions, and losses are in nats.

    Raises:
        ValueError: there are no records.
    """
    if not records:
        raise ValueError("there is nothing to draw without records. Received: no records")
    figure = _new_figure(9.0, 7.2)
    loss, accuracy, rate = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1.3])
    _draw_curves(loss, records, "loss", "loss (nats)")
    _draw_curves(accuracy, records, "accuracy", "accuracy")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    _draw_series(rate, records, _Series("learning_rate", "learning rate", {**_TRAIN_STYLE, "color": GREY}))
    rate.set_ylabel("learning rate", fontsize=10)
    # A linear axis would show nothing of a finetune phase at a hundredth of the head phase's rate.
    highest = max(record["learning_rate"] for record in records)
    _log_scale(rate)
    rate.set_ylim(highest / 500, highest * 2)
    rate.yaxis.set_major_locator(LogLocator(numticks=9))
    rate.set_xlabel("training step", fontsize=10)
    rate.set_xlim(left=0)
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (loss, accuracy, rate):
        _plain(axes)
    figure.align_ylabels()
    _mark_phases(loss, (accuracy, rate), records)
    return figure


@_png
def comparison_picture(
    names: Sequence[str], records: Sequence[Sequence[Mapping[str, Any]]], batch_sizes: Sequence[int]
) -> Figure:
    """Draw the training loss and the validation accuracy of runs over the images that they had seen.

    Args:
        names: the names of the runs, at most 8.
        records: the records of each run, as in `learning_curves_picture`.
        batch_sizes: the images per step of each run.

    Raises:
        ValueError: there are more runs than colours and markers that can be told apart.
    """
    if len(names) > len(_RUN_STYLES):
        raise ValueError(f"at most {len(_RUN_STYLES)} runs can be told apart. Received: {len(names)}")
    figure = _new_figure(9.0, 6.4)
    panels = figure.subplots(2, 1, sharex=True)
    for lines, batch_size, style in zip(records, batch_sizes, _RUN_STYLES, strict=False):
        for axes, key in zip(panels, ("cross_entropy", "validation_accuracy"), strict=True):
            points = [(line["step"] * batch_size, line[key]) for line in lines if key in line]
            axes.plot(*zip(*points, strict=True), linewidth=1.4, markersize=5, markevery=0.1, **style)
    loss, accuracy = panels
    loss.set_ylabel("train cross-entropy (nats),\nepoch so far", fontsize=10)
    accuracy.set_ylabel("validation accuracy", fontsize=10)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    accuracy.set_xlabel("images seen", fontsize=10)
    accuracy.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    for axes in panels:
        axes.set_xlim(left=0)
        _plain(axes)
    figure.align_ylabels()
    numbers = [str(number) for number in range(len(names))]
    legend = figure.legend(accuracy.get_lines(), numbers, frameon=False, fontsize=9, loc="outside upper left")
    for text, name in zip(legend.get_texts(), names, strict=True):
        # The names are set afterwards, because matplotlib leaves out a label that begins with "_".
        text.set_text(drawable(name, RUN_LETTERS))
    return figure


def _draw_curves(axes: Axes, records: Sequence[Mapping[str, Any]], key: str, label: str) -> None:
    _draw_series(axes, records, _Series(key, "train (epoch so far)", _TRAIN_STYLE))
    _draw_series(axes, records, _Series(f"validation_{key}", "validation", _VALIDATION_STYLE))
    axes.set_ylabel(label, fontsize=10)
    axes.legend(frameon=False, fontsize=10)


def _draw_series(axes: Axes, records: Sequence[Mapping[str, Any]], series: _Series) -> None:
    """Draw one value over the step, with a gap between the phases, because their losses are not the same function."""
    for index, phase in enumerate(_phases_of(records)):
        of_phase = [record for record in records if record["phase"] == phase and series.key in record]
        steps = [record["step"] for record in of_phase]
        values = [record[series.key] for record in of_phase]
        axes.plot(steps, values, label=series.name if index == 0 else None, **series.style)


def _phases_of(records: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(record["phase"] for record in records))


def _mark_phases(top: Axes, others: Sequence[Axes], records: Sequence[Mapping[str, Any]]) -> None:
    """Name the phases above the top panel, and draw a line where the next phase begins."""
    begin = 0
    for phase in _phases_of(records):
        end = max((record["step"] for record in records if record["phase"] == phase), default=begin)
        if end == begin:
            continue
        top.annotate(
            f"{phase} phase",
            ((begin + end) / 2, 1.02),
            xycoords=top.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=11,
        )
        if begin:
            for axes in (top, *others):
                axes.axvline(begin, color="black", linewidth=1.0, linestyle=":")
        begin = end


def _groups_picture(groups: Sequence[_Group], columns: int) -> Figure:
    """Draw groups under one another, all on a grid of the same width. An empty group is only its heading."""
    heights = [HEADING_INCHES + _grid_height(group.captions, columns) for group in groups]
    grid_width = columns * _cell_width([caption for group in groups for caption in group.captions])
    heading_width = max(text_width(group.heading, HEADING_FONT) for group in groups) + 0.3
    figure = _new_figure(max(grid_width, heading_width), sum(heights))
    parts = figure.subfigures(len(groups), 1, height_ratios=heights, squeeze=False).ravel()
    for part, group in zip(parts, groups, strict=True):
        part.suptitle(group.heading, fontproperties=HEADING_FONT, color=group.color)
        if group.captions:
            _draw_images(part, group.images, group.captions, columns)
    return figure


def _draw_images(figure: Figure | SubFigure, images: NDArray[np.uint8], titles: Sequence[str], columns: int) -> None:
    cells = figure.subplots(math.ceil(len(images) / columns), columns, squeeze=False).ravel()
    for axes in cells:
        axes.set_axis_off()
    # Not strict, because cells may be left over.
    for axes, image, title in zip(cells, images, titles, strict=False):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(title, fontproperties=CAPTION_FONT, pad=3)


def _cell_width(titles: Sequence[str]) -> float:
    lines = [line for title in titles for line in title.splitlines()]
    return max([CELL_INCHES, *(text_width(line, CAPTION_FONT) + 0.1 for line in lines)])


def _grid_height(titles: Sequence[str], columns: int) -> float:
    lines = max((title.count("\n") + 1 for title in titles), default=0)
    return math.ceil(len(titles) / columns) * (CELL_INCHES + 0.2 * lines)


def _log_scale(axes: Axes) -> None:
    """Make the vertical axis logarithmic, with plain numbers as labels. Matplotlib's own labels are formulas."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _plain(axes: Axes) -> None:
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _new_figure(width_inches: float, height_inches: float) -> Figure:
    # The constrained layout measures every label and moves the axes, so that none is cut.
    figure = Figure((width_inches, height_inches), dpi=DOTS_PER_INCH, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
    return figure


def image_png(image: NDArray[np.uint8]) -> bytes:
    """Return an image, uint8 `[height, width, 3]`, as a PNG file.

    Pillow writes it, because a `matplotlibrc` can tell matplotlib which side of an image is up.
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
