"""Where the files lie that come beside the package in the repository: notebooks, weights, data.

An installed wheel has none of them: then these paths do not exist, and who asks says so.
"""

from __future__ import annotations

from pathlib import Path

START_NOTEBOOK = Path("notebooks/00_start.ipynb")
FULL_ENGINE_NOTEBOOK = Path("notebooks/02_full_engine.ipynb")
ADAPTERS, DATASETS = Path("adapters"), Path("datasets")
EMBEDDED_MODEL = ADAPTERS / "tinypy" / "base"
ARTIFACTS = Path(".artifacts")


def repository_root() -> Path:
    """Return the folder that holds the package, which in a checkout is the repository's root."""
    return Path(__file__).resolve().parents[1]
