"""`python docs/site/prose.py`: how long each page and its sentences are. A look, not a gate.

A page's code, tables and headings do not count. A sentence ends with `.`, `!` or `?` before a space, and so does a list item.
"""

import re
import statistics
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/*.md", "experiments/**/*.md", "docker/*.md")

CODE_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
PICTURE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
# A blank line, a list item, a heading or a row of a table begins another block.
BLOCK = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.)\s)|\n(?=[#|])")
SENTENCE = re.compile(r"(?<=[.!?])[*`\"]*\s+(?=[A-Z`*\[\"(])")


def sentences_of(text: str) -> Iterator[str]:
    """Yield the sentences of a page in Markdown, without marks of links."""
    for pattern in (CODE_BLOCK, COMMENT, PICTURE):
        text = pattern.sub("", text)
    for block in BLOCK.split(text):
        line = " ".join(LINK.sub(r"\1", block).split())
        if line and not line.startswith(("#", "|", ":::")):
            yield from SENTENCE.split(line)


def main() -> None:
    """Print a line for each page: words, sentences, words a sentence, the longest sentence and how it begins."""
    print(f"{'page':38} {'words':>6} {'sentences':>9} {'mean':>5} {'longest':>7}")
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            text = path.read_text(encoding="utf-8")
            lengths = {sentence: len(sentence.split()) for sentence in sentences_of(text)}
            if lengths:
                longest = max(lengths, key=lambda sentence: lengths[sentence])
                mean = statistics.mean(lengths.values())
                name = str(path.relative_to(ROOT))
                row = f"{name:38} {len(text.split()):6,} {len(lengths):9} {mean:5.1f} {lengths[longest]:7}"
                print(f"{row}  {longest[:60]}")


if __name__ == "__main__":
    main()
