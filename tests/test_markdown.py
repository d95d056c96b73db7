import html as html_library

import pytest
from markdown import markdown as render

from cifar_keras.reporting.markdown import code, text

NAMES = [
    "a|b",
    "*a*",
    "`a`",
    "``",
    "<b>",
    "_a_",
    "a\\b",
    "[a](b)",
    "$1_$2{",
    "# a",
    "two\nlines",
    "plain name",
    "|",
    "ü",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are_and_stay_in_their_cell(name: str) -> None:
    """By the library that TensorBoard uses."""
    for written in (text(name), code(name)):
        html = render(f"|head|next|\n|-|-|\n|{written}|other|", extensions=["markdown.extensions.tables"])
        cells = [cell.partition("</td>")[0] for cell in html.split("<td>")[1:]]
        assert len(cells) == 2
        assert cells[1] == "other"
        shown = cells[0].removeprefix("<code>").removesuffix("</code>")
        assert html_library.unescape(shown) == " ".join(name.split())
