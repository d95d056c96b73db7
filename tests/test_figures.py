import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from cifar_keras.evaluation.calibration import softmax
from cifar_keras.flags import MOST_RUNS
from cifar_keras.reporting import figures

ROOT = Path(__file__).parents[1]
NAMES = ["airplane", "automobile", "bird", "cat"]


def decode(png: bytes) -> NDArray[np.uint8]:
    """Decode, and check that nothing touches the border, where it would be cut."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    for border in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (border == 255).all()
    return pixels


def images_of(colors: list[tuple[int, int, int]]) -> NDArray[np.uint8]:
    return np.stack([np.full((32, 32, 3), color, np.uint8) for color in colors])


def shows(pixels: NDArray[np.uint8], color: tuple[int, int, int]) -> bool:
    return int((pixels == color).all(axis=-1).sum()) > 1000


def records(*, finetune: bool = True, rate: float = 0.1) -> list[dict[str, Any]]:
    made = []
    for index, phase in enumerate(("head", "finetune")[: 1 + finetune]):
        for step in range(1, 21):
            figures = {"loss": 2 / step, "accuracy": 1 - 1 / step, "learning_rate": rate, "images_per_second": 100.0}
            made.append({"phase": phase, "step": 20 * index + step, "epoch": index, **figures})
        made[-1] |= {"validation_loss": 0.3, "validation_accuracy": 0.8}
    return made


def test_confusion_matrix_picture_is_white_around_and_changes_with_its_counts() -> None:
    matrix = np.diag([90, 80, 70, 60])
    pixels = decode(figures.confusion_matrix_picture(matrix, NAMES))
    assert min(pixels.shape[:2]) > 300
    assert (decode(figures.confusion_matrix_picture(matrix.tolist(), NAMES)) == pixels).all()
    matrix[0, 3] = 30
    changed = decode(figures.confusion_matrix_picture(matrix, NAMES))
    assert changed.shape == pixels.shape
    assert (changed != pixels).any()


def test_confusion_matrix_colour_is_normalised_by_row() -> None:
    # The whole of a row is one colour, the darkest, whatever the count.
    pixels = decode(figures.confusion_matrix_picture([[1000, 0], [0, 10]], ["cat", "dog"]))
    darkest = colormaps["Blues"](1.0, bytes=True)[:3]
    columns = np.flatnonzero((pixels == darkest).all(-1).sum(0) > 30)
    assert columns.max() - columns.min() > 100  # two cells of the diagonal, not one


def test_confusion_matrix_without_images_and_of_another_size() -> None:
    decode(figures.confusion_matrix_picture(np.zeros((4, 4), np.int64), NAMES))
    with pytest.raises(ValueError, match=re.escape("[4, 4]. Received: shape (3, 3)")):
        figures.confusion_matrix_picture(np.zeros((3, 3), np.int64), NAMES)


def test_predictions_picture_shows_right_above_wrong() -> None:
    red, blue = (250, 10, 20), (20, 10, 250)
    logits = np.array([[9, 0, 0, 0], [0, 9, 0, 0]], np.float32)
    pixels = decode(figures.predictions_picture(images_of([red, blue]), np.array([0, 2]), softmax(logits), NAMES))
    rows_of = [np.flatnonzero((pixels == color).all(-1).any(1)) for color in (red, blue)]
    assert len(rows_of[0]) > 100
    assert rows_of[0].max() < rows_of[1].min()


def test_predictions_are_spread_evenly_over_confidence() -> None:
    colors = [(10 * index, 255 - 10 * index, 77) for index in range(9)]
    logits = np.zeros((9, 4), np.float32)
    logits[:, 0] = [3, 1, 8, 5, 7, 2, 9, 6, 4]  # confidence in this order of size; all right
    png = figures.predictions_picture(
        images_of(colors), np.zeros(9, np.int64), softmax(logits), NAMES, columns=3, rows=1
    )
    pixels = decode(png)
    # Sorted by confidence, places 1, 5 and 9 of 9: the images with logit 9, 5 and 1.
    assert [shows(pixels, color) for color in colors] == [index in (6, 3, 1) for index in range(9)]
    columns = [np.flatnonzero((pixels == colors[index]).all(-1).any(0)).mean() for index in (6, 3, 1)]
    assert columns == sorted(columns)


@pytest.mark.parametrize("label", [0, 1])
def test_predictions_that_are_all_right_or_all_wrong(label: int) -> None:
    logits = np.zeros((3, 4), np.float32)
    logits[:, 0] = 5
    color = (250, 10, 20)
    pixels = decode(figures.predictions_picture(images_of([color] * 3), np.full(3, label), softmax(logits), NAMES))
    assert shows(pixels, color)


def test_predictions_of_long_names_are_not_cut() -> None:
    names = ["i" * 40, "m" * 40]
    images = images_of([(250, 10, 20)] * 3)
    decode(figures.predictions_picture(images, np.array([0, 1, 1]), np.eye(3, 2), names, columns=2))


def test_attribution_picture_draws_what_speaks_for_and_against_a_class() -> None:
    """Over a grey image, orange where the map is positive, blue where it is negative, and grey where it is zero."""
    images = np.full((1, 32, 32, 3), 128, np.uint8)
    maps = np.array([[[1.0, 0.0, -1.0]]], np.float32)
    pixels = decode(figures.attribution_picture(images, [("a map", maps)], ["an image"])).astype(int)
    red_over_blue = pixels[..., 0] - pixels[..., 2]
    thirds = [np.flatnonzero((red_over_blue * sign > 80).any(axis=0)) for sign in (1, -1)]
    assert min(len(third) for third in thirds) > 20
    assert thirds[0].max() < thirds[1].min() - 20  # what says nothing lies between
    decode(figures.attribution_picture(images, [("nothing", 0 * maps)], ["an image"]))


def test_as_many_runs_are_told_apart_as_can_be_compared() -> None:
    records = [{"step": 1, "cross_entropy": 1.0, "validation_accuracy": 0.5}]
    decode(figures.comparison_picture(["run"] * MOST_RUNS, [records] * MOST_RUNS, [32] * MOST_RUNS))
    with pytest.raises(ValueError, match=f"Received: {MOST_RUNS + 1}"):
        figures.comparison_picture(["run"] * (MOST_RUNS + 1), [], [])


def test_reliability_picture_changes_with_its_temperature_and_bears_certainty() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 200)
    logits = (generator.normal(size=(200, 4)) + 3 * np.eye(4)[labels]).astype(np.float32)
    pixels = decode(figures.reliability_picture(logits, labels, 1.0))
    assert (decode(figures.reliability_picture(logits, labels, 1.0)) == pixels).all()
    changed = decode(figures.reliability_picture(logits, labels, 2.0))
    assert changed.shape == pixels.shape
    assert (changed != pixels).any()
    decode(figures.reliability_picture(1e6 * np.eye(4, dtype=np.float32)[:1], np.array([0]), 1e-3))


def test_predictions_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="Received: 2, 3 and 2"):
        figures.predictions_picture(images_of([(0, 0, 0)] * 2), np.zeros(3, np.int64), np.zeros((2, 4)), NAMES)


def test_image_grid_picture_shows_crisp_pixels() -> None:
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[0, :, 2:] = (200, 100, 50)
    pixels = decode(figures.image_grid_picture(image, ["half\nand half"], 4))
    inside = pixels[np.flatnonzero((pixels == (200, 100, 50)).all(-1).any(1))[10]]
    colors = {tuple(map(int, color)) for color in inside}
    # Black, the colour and the paper; smooth interpolation would add everything between.
    assert colors == {(0, 0, 0), (200, 100, 50), (255, 255, 255)}


def test_image_grid_picture_shows_every_image_once_in_reading_order() -> None:
    colors = [(10 + 20 * index, 99, 200 - 20 * index) for index in range(5)]
    pixels = decode(figures.image_grid_picture(images_of(colors), [f"image {index}" for index in range(5)], 3))
    places = [np.argwhere((pixels == color).all(-1)).mean(0) for color in colors]
    rows = [round(place[0]) for place in places]
    assert rows[0] == rows[1] == rows[2] < rows[3] == rows[4]
    assert places[0][1] < places[1][1] < places[2][1]
    assert places[3][1] == pytest.approx(places[0][1], abs=1)


@pytest.mark.parametrize("titles", [[], ["one"]])
def test_image_grid_without_images_or_titles_is_refused(titles: list[str]) -> None:
    with pytest.raises(ValueError, match="Received: "):
        figures.image_grid_picture(np.zeros((2 * len(titles), 8, 8, 3), np.uint8), titles, 4)


def test_learning_curves_change_with_loss_phase_and_rate() -> None:
    drawn = [
        decode(figures.learning_curves_picture(made))
        for made in (records(), records(finetune=False), records(rate=0.2), records()[:3])
    ]
    assert len({pixels.tobytes() for pixels in drawn}) == len(drawn)
    assert {pixels.shape for pixels in drawn} == {drawn[0].shape}
    assert (decode(figures.learning_curves_picture(records())) == drawn[0]).all()
    with pytest.raises(ValueError, match="no records"):
        figures.learning_curves_picture([])


def test_pictures_need_neither_pyplot_nor_tensorflow() -> None:
    code = (
        "import sys, cifar_keras.reporting.figures as p, cifar_keras.reporting.tables;"
        "p.confusion_matrix_picture([[1, 0], [0, 1]], ['a', 'b']);"
        "print([name for name in ('matplotlib.pyplot', 'tensorflow', 'keras') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_corruptions_are_drawn_by_their_accuracy() -> None:
    def rows(accuracy: float) -> list[dict[str, Any]]:
        names = [f"{name} {severity}" for name in ("gaussian_noise", "jpeg_compression") for severity in range(1, 6)]
        return [{"name": "none", "accuracy": 0.9}, *({"name": name, "accuracy": accuracy} for name in names)]

    low, high = (decode(figures.corruptions_picture(rows(accuracy))) for accuracy in (0.1, 0.9))
    assert low.shape == high.shape
    assert (low != high).any(axis=-1).mean() > 0.1


def test_the_feature_map_has_a_panel_for_each_class() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(400) % 4
    points = generator.normal(size=(400, 2)).astype(np.float32)
    pixels = decode(figures.feature_map_picture(points, labels, NAMES, np.array([0.4, 0.2])))
    blue = (pixels == (0x00, 0x72, 0xB2)).all(axis=-1)
    width = pixels.shape[1]
    assert all(blue[:, place * width // 4 : (place + 1) * width // 4].any() for place in range(4))
    without = decode(figures.feature_map_picture(points, labels * 0, NAMES, np.array([0.4, 0.2])))
    blue = (without == (0x00, 0x72, 0xB2)).all(axis=-1)
    assert not blue[:, width // 2 :].any()


# What people put into a `matplotlibrc`, or set in a notebook before they call.
PERSONAL_STYLE: Any = {
    "image.origin": "lower",
    "image.interpolation": "bicubic",
    "image.cmap": "gray",
    "text.color": "white",
    "axes.labelcolor": "white",
    "axes.grid": True,
    "axes.facecolor": "black",
    "axes.titlesize": 30,
    "axes.unicode_minus": False,
    "axes.formatter.use_locale": True,
    "figure.autolayout": True,
    "figure.facecolor": "black",
    "figure.dpi": 30,
    "font.family": "monospace",
    "font.weight": "bold",
    "font.size": 24,
    "lines.linewidth": 9,
    "legend.loc": "center",
    "savefig.dpi": 30,
    "savefig.bbox": "tight",
    "savefig.transparent": True,
    "savefig.format": "svg",
    "xtick.color": "white",
    "text.usetex": True,
}


def every_picture() -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (4, 32, 32, 3), np.uint8)
    logits, labels = generator.normal(size=(40, 4)).astype(np.float32), np.arange(40) % 4
    runs = [[{"step": 1, "cross_entropy": 1.0, "validation_accuracy": 0.5}]] * 2
    corrupted = [{"name": name, "accuracy": 0.5} for name in ("none", "fog 1", "fog 2")]
    made = {
        "confusion_matrix": figures.confusion_matrix_picture(np.diag([9, 8, 7, 6]), NAMES),
        "corruptions": figures.corruptions_picture(corrupted),
        "predictions": figures.predictions_picture(images, labels[:4], softmax(logits[:4]), NAMES),
        "reliability": figures.reliability_picture(logits, labels, 1.5),
        "coverage": figures.coverage_picture(softmax(logits), labels),
        "attribution": figures.attribution_picture(images[:1], [("map", np.eye(3, dtype=np.float32)[None])], ["one"]),
        "feature_map": figures.feature_map_picture(logits[:, :2], labels, NAMES, np.array([0.4, 0.2])),
        "image_grid": figures.image_grid_picture(images, NAMES, 2),
        "learning_curves": figures.learning_curves_picture(records()),
        "comparison": figures.comparison_picture(["a", "b"], runs, [32, 32]),
        "image": figures.image_png(images[0]),
    }
    public = {name.removesuffix("_picture") for name in vars(figures) if re.fullmatch(r"[a-z]\w*_picture", name)}
    assert public <= made.keys()  # whoever adds a picture adds it here
    return made


@pytest.mark.slow
def test_pictures_are_the_same_bytes_whatever_the_users_style_is() -> None:
    plain = every_picture()
    with matplotlib.rc_context(PERSONAL_STYLE):
        personal = every_picture()
        assert matplotlib.rcParams["image.origin"] == "lower"  # and it holds again afterwards
    assert [name for name, png in plain.items() if png != personal[name]] == []


@pytest.mark.slow
def test_fonts_are_not_the_users_when_the_module_is_imported(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("font.family: monospace\nfont.weight: bold\nimage.origin: lower\n")
    code = (
        "import sys, hashlib, numpy as np; from cifar_keras.reporting import figures as p;"
        "image = np.arange(3072, dtype=np.uint8).reshape(1, 32, 32, 3);"
        "print(hashlib.sha256(p.image_grid_picture(image, ['title'], 1)).hexdigest())"
    )
    digests = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for folder in (ROOT, tmp_path)
    ]
    assert digests[0] == digests[1]


def test_a_pixel_keeps_its_place_in_a_file() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(figures.image_png(image)))), image)


@pytest.mark.parametrize("name", ["b$1_$2{", "_hidden", "$\\frac$", "a_b^c"])
def test_names_are_text_and_all_of_them_are_in_the_legend(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def look(figure: Figure, *arguments: Any, **settings: Any) -> None:
        shown.extend(text.get_text() for legend in figure.legends for text in legend.get_texts())
        assert not any(text.get_parse_math() for legend in figure.legends for text in legend.get_texts())
        save(figure, *arguments, **settings)

    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", look)
    runs = [[{"step": 1, "cross_entropy": 1.0, "validation_accuracy": 0.5}]] * 2
    decode(figures.comparison_picture(["a", name], runs, [32, 32]))
    assert shown == ["a", name]
    titled = np.zeros((1, 8, 8, 3), np.uint8)
    decode(figures.image_grid_picture(titled, [name], 1))
    decode(figures.confusion_matrix_picture(np.eye(2, dtype=np.int64), ["a", name]))
    decode(figures.attribution_picture(titled, [(name, np.zeros((1, 2, 2), np.float32))], [name]))
