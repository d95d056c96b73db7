"""Names of classes are the user's: any length, any script, any sign."""

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image

from cifar_keras.reporting import figures
from cifar_keras.reporting.lettering import FONT, LONGEST, drawable

ROOT = Path(__file__).parents[1]
MOST_PIXELS = 3500  # of the width: of eight columns of the widest letters
# The last has letters of Egypt, which hardly any font has.
NAMES = (
    *("$x", "$a$b_{", "<b>&\"cat'", "日本語", "عربى", "{{ x }}", "`code` *bold*", "\\frac", "%s {0}", "-dash", "_"),
    *("a name as long as a sentence, and a half", "W" * 255, "l" * 255, "\U00013000"),
)


@pytest.mark.parametrize("text", ["cat", "left lung, upper lobe 0.93", "café ½", "cat 0.50,\nis dog", ""])
def test_a_text_that_can_be_drawn_stays_as_it_is(text: str) -> None:
    assert drawable(text) == text


@pytest.mark.parametrize(("length", "longest"), [(33, LONGEST), (300, LONGEST), (300, 18), (19, 18)])
def test_a_line_that_is_too_long_keeps_both_ends(length: int, longest: int) -> None:
    name = "".join(chr(ord("a") + place % 26) for place in range(length))
    begin, end = drawable(name, longest).split("...")
    assert len(begin) + len(end) + 3 == longest
    assert name.startswith(begin)
    assert name.endswith(end)
    assert len(begin) > len(end) > 4


def test_lines_are_shortened_one_by_one() -> None:
    assert drawable(f"{'x' * 50} 0.93,\nis cat") == f"{'x' * 17}...{'x' * 6} 0.93,\nis cat"


def test_letters_that_no_font_has_are_escapes() -> None:
    assert drawable("cat \U00013000") == "cat \\U00013000"
    assert not get_font(findfont(FontProperties(family=FONT))).get_char_index(0x13000)


def every_picture_with_names(names: tuple[str, ...]) -> list[bytes]:
    count = len(names)
    images = np.zeros((count, 8, 8, 3), np.uint8)
    probabilities, labels = np.eye(count), np.roll(np.arange(count), 1)
    titles = [f"{name} 0.93,\nis {name}" for name in names]
    points = np.stack([labels, labels], axis=1).astype(np.float32)
    runs = [[{"step": 1, "cross_entropy": 1.0, "validation_accuracy": 0.5}]] * 8
    return [
        figures.confusion_matrix_picture(np.eye(count, dtype=np.int64), names),
        figures.confusion_matrix_picture(np.eye(2, dtype=np.int64), names[-3:-1]),
        figures.predictions_picture(images, labels, probabilities, names),
        figures.attribution_picture(images, [("map", np.zeros((count, 2, 2), np.float32))] * 3, titles),
        figures.feature_map_picture(points, labels, names, np.array([0.4, 0.2])),
        figures.image_grid_picture(images, titles, 8),
        figures.comparison_picture(names[-8:], runs, [32] * 8),
    ]


def test_no_picture_is_cut_or_too_wide_or_warns_whatever_classes_are_called() -> None:
    with warnings.catch_warnings():
        # Matplotlib's own: files that other tests left open are no matter here.
        warnings.simplefilter("error", UserWarning)
        pictures = every_picture_with_names(NAMES)
    for content in pictures:
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert pixels.shape[1] <= MOST_PIXELS
        for border in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            assert (border == 255).all()


def test_other_fonts_are_asked_where_they_are_installed(tmp_path: Path) -> None:
    """An installed font is not there in every test: a copy of matplotlib's own serif font plays it, under its own name."""
    code = (
        "from cifar_keras.reporting import lettering as l\n"
        "print(l.families())\n"
        "l.OTHER_FONTS = ('No Such Font', 'STIXGeneral')\n"
        "l.families.cache_clear()\n"
        "print(l.families(), ascii(l.drawable('\\u2340')))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    own, others = done.stdout.splitlines()
    assert own.startswith("['DejaVu Sans'")
    assert others == "['DejaVu Sans', 'STIXGeneral'] '\\u2340'"
    assert "findfont" not in done.stderr
