"""Names and values in Markdown, as they are: a `|` in one ends no cell, and a `*` prints nothing bold."""

import re

# As entities, which every kind of Markdown knows; what a backslash escapes differs from one to the next. A "_" within a word is plain.
_MARKUP = re.compile(r"[\\`*{}\[\]<>&|#$~]|(?<!\w)_|_(?!\w)")


def text(value: object) -> str:
    """Return a value as plain words of a line or of a cell."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", " ".join(str(value).split()))


def code(value: object) -> str:
    """Return a value as code of a line or of a cell."""
    line = " ".join(str(value).split())
    return f"<code>{text(line)}</code>" if re.search(r"[|`\\]", line) or not line else f"`{line}`"
