"""A notebook is executed once: in JupyterLab where a test does so, else here."""

from __future__ import annotations

import pytest

from workbench.cli.machine.browser import find_browser


@pytest.hookimpl(trylast=True)  # after what -k and -m leave out has gone
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `test_it_runs` of what another test, of those about to run, runs in a browser."""
    elsewhere = {
        mark.args[0]: item for item in items for mark in item.iter_markers("runs_notebook")
    }
    if not elsewhere or find_browser() is None:
        return
    here = [item for item in items if getattr(item, "originalname", "") == "test_it_runs"]
    for item in here:
        assert isinstance(item, pytest.Function)
        if other := elsewhere.get(item.callspec.params["path"].stem):
            reason = f"run by {other.nodeid}; lifted by `pytest tests/notebooks`"
            item.add_marker(pytest.mark.skip(reason=reason))
