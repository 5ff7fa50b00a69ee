"""Find a Chromium that a test can drive without a display.

`python -m workbench.cli.machine.browser` prints its path, or ends with status 1: the Makefile asks
so. Looks for Chromium and Chrome on PATH and in their usual places, then for one that playwright
fetched.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from workbench.cli.machine.command import output_of

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PLACES = (
    Path("/Applications/Chromium.app/Contents/MacOS/Chromium"),
    Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"),
)
HOW_TO_GET_ONE = "install chromium, or run `.venv/bin/playwright install chromium`"


def find_browser() -> Path | None:
    """Return the first browser that tells its version (a stub may exist and not run), or None."""
    on_path = [Path(found) for name in NAMES if (found := shutil.which(name))]
    for browser in [*on_path, *(place for place in PLACES if place.exists())]:
        if browser_version(browser):
            return browser
    return _fetched_by_playwright()


def browser_version(browser: Path) -> str | None:
    """Return what the browser says of itself, such as "Chromium 140.0.7339.80"."""
    return output_of([str(browser), "--version"])


def _fetched_by_playwright() -> Path | None:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with sync_playwright() as playwright:
        browser = Path(playwright.chromium.executable_path)
    return browser if browser.exists() and browser_version(browser) else None


if __name__ == "__main__":
    found = find_browser()
    if found is None:
        sys.exit(f"no browser: {HOW_TO_GET_ONE}")
    print(found)
