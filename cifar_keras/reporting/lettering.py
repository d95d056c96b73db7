"""Text that pictures can draw: names of classes, files and runs are the user's, of any length and in any script."""

import functools

from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.textpath import text_to_path

# It comes with matplotlib, so that pictures look the same on every machine.
FONT = "DejaVu Sans"
# For letters that it lacks, where they are installed.
OTHER_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans CN", "WenQuanYi Zen Hei")
# Letters of a line. Eight columns of pictures with such captions are about 2,300 pixels wide.
LONGEST = 32


@functools.cache
def families() -> list[str]:
    """Return the fonts of pictures. Each is asked for the letters that those before it lack."""
    # Only those that are there: matplotlib warns of others.
    installed = set(fontManager.get_font_names())
    return [FONT, *(name for name in OTHER_FONTS if name in installed)]


def font(weight: str, size: int) -> FontProperties:
    """Return a font for pictures.

    Args:
        weight: "normal" or "bold".
        size: in points.
    """
    # Every property is given, because a missing one would come from the user's style when a module is imported.
    return FontProperties(
        family=families(), style="normal", variant="normal", stretch="normal", weight=weight, size=size
    )


def drawable(text: str, longest: int = LONGEST) -> str:
    r"""Return a text that the fonts can draw, with lines that are not too long.

    A letter that no font has becomes an escape such as `\u4e2d`. A line that is too long loses its middle.

    Args:
        text: one or more lines.
        longest: the most letters of a line.

    Examples:
        >>> drawable("left ventricular hypertrophy, moderate 0.93")
        'left ventricular ...oderate 0.93'
    """
    return "\n".join(_shortened(_escaped(line), longest) for line in text.split("\n"))


def text_width(line: str, properties: FontProperties) -> float:
    """Return the width in inches that a line of text takes at most."""
    points = float(text_to_path.get_text_width_height_descent(line, properties, ismath=False)[0])
    # A margin of 8 %, because drawn letters take whole pixels: "m" at 9 points becomes 5 % wider.
    return 1.08 * points / 72


def _shortened(line: str, longest: int) -> str:
    if len(line) <= longest:
        return line
    # The end stays, because two names often differ there alone, and because a caption has its number there.
    end = longest * 3 // 8
    return f"{line[: longest - end - 3]}...{line[-end:]}"


def _escaped(line: str) -> str:
    if line.isascii():
        return line
    return "".join(
        letter if any(face.get_char_index(ord(letter)) for face in _faces()) else _escape(letter) for letter in line
    )


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


@functools.cache
def _faces() -> list[FT2Font]:
    return [FT2Font(findfont(FontProperties(family=name))) for name in families()]
