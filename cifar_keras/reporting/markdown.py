"""Escape names and values for Markdown, so that they appear as they are: a `|` ends no cell, and a `*` makes nothing bold."""

import re

# Characters to write as entities, which every kind of Markdown knows. Which characters a backslash escapes differs from one kind to the
# next. A "_" within a word is plain.
_MARKUP = re.compile(r"[\\`*{}\[\]<>&|#$~]|(?<!\w)_|_(?!\w)")


def text(value: object) -> str:
    """Return a value as plain text for a line or a table cell.

    Examples:
        >>> text("cats | *dogs*")
        'cats &#124; &#42;dogs&#42;'
    """
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", " ".join(str(value).split()))


def code(value: object) -> str:
    """Return a value as code for a line or a table cell.

    Examples:
        >>> code("quickstart"), code("a|b")
        ('`quickstart`', '<code>a&#124;b</code>')
    """
    line = " ".join(str(value).split())
    return f"<code>{text(line)}</code>" if re.search(r"[|`\\]", line) or not line else f"`{line}`"
