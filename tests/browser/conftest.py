"""A real JupyterLab on loopback and a headless Chromium that opens notebooks in it.

`lab` starts the server that `make lab` starts, with its settings in a temporary folder;
`run_notebook` opens a copy of a notebook, runs all its cells as a reader would, and returns them.
Nothing may be read from a page before it can be there: tests/support/browsing.py says how.

WORKBENCH_SLOW_PAGE=20 runs the pages' own threads twenty times slower once a notebook is open (a
bare page: from the start), and lets animation frames come a second late: it finds what does not
wait. Limits grow with it, and no test is ended by pytest.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from browsing import LIMIT_MS, SLOWER, can_be_slowed, set_speed, set_theme
from notebook_parameters import shorten

from workbench.cli.lab import lab_command
from workbench.cli.machine.browser import HOW_TO_GET_ONE, find_browser

CHROMIUM_OPTIONS = [
    "--no-sandbox",  # root in a container has no user namespace for it; the pages are our own
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TEST_SECONDS = 600
START_SECONDS = 120
RUN_SECONDS = 300 * max(1, SLOWER / 4)
# The driver looks at every frame by default; all outputs of a notebook are much to look at.
POLL_MS = 250

# True while the notebook's kernel is there and has nothing to do.
IDLE = """() => window.jupyterapp?.shell.currentWidget?.sessionContext
  ?.session?.kernel?.status === "idle" """
# True once every cell that has code has run, or one has failed, and the kernel is idle again.
FINISHED = f"""() => {{
  const cells = window.jupyterapp.shell.currentWidget.content.widgets.filter(
    cell => cell.model.type === "code" && cell.model.sharedModel.getSource().trim());
  const failed = cells.some(
    cell => cell.model.outputs.toJSON().some(output => output.output_type === "error"));
  const done = cells.every(cell => cell.model.executionCount !== null);
  return (done || failed) && ({IDLE})();
}}"""
CELLS = """() => window.jupyterapp.shell.currentWidget.content.widgets.map(
  cell => cell.model.sharedModel.toJSON())"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test with a browser the same time, which is long: a machine may be slow."""
    for item in items:
        if item.get_closest_marker("browser"):
            limit = 0 if SLOWER > 1 else TEST_SECONDS
            item.add_marker(pytest.mark.timeout(limit))


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab: where it answers, its token, the folder it serves, and its own data."""

    url: str
    token: str
    folder: Path
    data: Path

    def address(self, name: str) -> str:
        """Return the address of a notebook in the served folder, in a fresh workspace."""
        return f"{self.url}/lab/tree/{name}?token={self.token}&reset"

    def answers(self) -> bool:
        """Whether the server takes requests with its token."""
        request = urllib.request.Request(
            f"{self.url}/api/status", headers={"Authorization": f"token {self.token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@pytest.fixture(scope="session")
def chromium() -> Path:
    """The browser's path; skips where there is none."""
    found = find_browser()
    if found is None:
        pytest.skip(f"no Chromium on this machine: {HOW_TO_GET_ONE}")
    return found


@pytest.fixture(scope="session")
def lab(chromium: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Start JupyterLab on a free port of loopback; stop it, and its kernels, afterwards."""
    home, folder = tmp_path_factory.mktemp("jupyter"), tmp_path_factory.mktemp("served")
    first = folder / "empty.ipynb"
    nbformat.write(nbformat.v4.new_notebook(), first)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    running = Lab(f"http://127.0.0.1:{port}", secrets.token_hex(16), folder, home / "data")
    command = lab_command(first, folder, browser=False, port=port)
    command += ["--LabApp.expose_app_in_browser=True", "--ServerApp.port_retries=0"]
    log = home / "server.log"
    with log.open("w") as sink:
        server = subprocess.Popen(
            command,
            env={**os.environ, **quiet_settings(home), "JUPYTER_TOKEN": running.token},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while not running.answers():
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-4000:]}")
                time.sleep(0.2)
            yield running
        finally:
            server.terminate()
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()


def quiet_settings(home: Path) -> dict[str, str]:
    """Return an environment that keeps the user's own settings out, and the news pop-up away."""
    settings = home / "settings"
    plugin = settings / "@jupyterlab" / "apputils-extension"
    plugin.mkdir(parents=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    (plugin / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    return {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
    }


@pytest.fixture
def page(chromium: Path, tmp_path: Path) -> Iterator[Any]:
    """A page of a fresh headless browser with a profile of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=str(chromium),
            headless=True,
            args=CHROMIUM_OPTIONS,
            viewport={"width": 1280, "height": 900},
        )
        page = context.pages[0]
        page.set_default_timeout(LIMIT_MS)
        can_be_slowed(page)
        set_speed(page, SLOWER)
        yield page
        context.close()


@pytest.fixture
def run_notebook(
    lab: Lab, page: Any, repository: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[[Path], list[Any]]]:
    """Return a function that runs a notebook in the browser and returns its cells (nbformat).

    The copy that runs is stripped of outputs first, so that whatever is there afterwards is new. A
    screenshot is left in .artifacts/browser/, also of a run that did not end. A test that is marked
    `runs_notebook` has to.
    """
    ran: set[str] = set()

    def run(path: Path) -> list[Any]:
        notebook = nbformat.read(path, as_version=4)
        shorten(notebook, path.stem)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, lab.folder / path.name)
        page.goto(lab.address(path.name), wait_until="commit")
        set_speed(page, 1)
        try:
            page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=START_SECONDS * 1e3)
            page.wait_for_function(IDLE, timeout=START_SECONDS * 1e3)
            set_theme(page, "Light")  # the server keeps what another test may have chosen
            set_speed(page, SLOWER)
            # `void`: the command's promise may never settle for the driver
            page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
            page.wait_for_function(FINISHED, polling=POLL_MS, timeout=RUN_SECONDS * 1e3)
        finally:
            shots = repository / ".artifacts" / "browser"
            shots.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=str(shots / f"{path.stem}.png"))
        ran.add(path.stem)
        cells: list[Any] = page.evaluate(CELLS)
        return cells

    yield run
    stop_kernels(lab)
    assert {mark.args[0] for mark in request.node.iter_markers("runs_notebook")} <= ran


def stop_kernels(lab: Lab) -> None:
    """End every session, so that the next notebook meets a fresh kernel."""
    headers = {"Authorization": f"token {lab.token}"}
    listing = urllib.request.Request(f"{lab.url}/api/sessions", headers=headers)
    with urllib.request.urlopen(listing, timeout=10) as reply:
        sessions = json.load(reply)
    for session in sessions:
        one = urllib.request.Request(
            f"{lab.url}/api/sessions/{session['id']}", headers=headers, method="DELETE"
        )
        urllib.request.urlopen(one, timeout=30).close()
