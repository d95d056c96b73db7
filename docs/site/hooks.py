"""Put the README, the notebook and the lab book, which lie outside `docs/`, into the site, with links that hold in both places.

In the repository a link leads from file to file. In the site `docs/` is the top, the README is the home page, and `experiments/`
lies beside the other pages.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
# What the pages of the lab book link to.
LAB_BOOK = ("*.md", "*.flags", "lab_book/*.md", "results/*.png", "results/**/*.json", "results/*.jsonl")
# A link or a picture in Markdown: its text, the file that it leads to, and the heading in it.
LINK = re.compile(r"(\[[^\]]*\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README, the notebook and the lab book."""
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    files.append(File.generated(config, "LICENSE.txt", abs_src_path=str(ROOT / "LICENSE")))
    notebook = "notebooks/your_own_images.ipynb"
    files.append(File.generated(config, notebook, abs_src_path=str(ROOT / notebook)))
    for pattern in LAB_BOOK:
        for path in sorted((ROOT / "experiments").glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links from file to file into links from page to page."""
    page_in_site = page.file.src_uri
    here = posixpath.dirname(in_repository(page_in_site))

    def lead_on(link: re.Match[str]) -> str:
        target = in_site(posixpath.normpath(posixpath.join(here, link[2])))
        return f"{link[1]}{posixpath.relpath(target, posixpath.dirname(page_in_site) or '.')}{link[3]}"

    return LINK.sub(lead_on, markdown)


def in_repository(page: str) -> str:
    """Return where a page of the site lies in the repository."""
    if page == "index.md":
        return "README.md"
    return page if page.startswith("experiments/") else f"docs/{page}"


def in_site(file: str) -> str:
    """Return where a file of the repository lies in the site."""
    moved = {"README.md": "index.md", "LICENSE": "LICENSE.txt"}
    return moved.get(file, file.removeprefix("docs/"))
