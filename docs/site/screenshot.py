"""`python docs/site/screenshot.py runs/NAME/report.html docs/pictures/report.png`: take the picture of a report that the README shows.

Needs a chromium on the machine, and the extra `test`.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1100, 760  # pixels: the metrics, and the first classes


def main(report: Path, picture: Path) -> None:
    """Write what a window of `WIDTH` x `HEIGHT` shows of the top of a report as a PNG file."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        tab.goto(report.resolve().as_uri())
        tab.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
