"""One ES module from the files under `js/`, without a build step.

anywidget takes a module as one string, and a string has nowhere to import from. So the files that a
view imports, all of them from the same folder, are put before it and their `import` and `export`
lines are taken out. The files stay plain modules, which node tests import as they are.
"""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parent / "js"
# As text: given a path, anywidget would keep every widget alive to tell it of changes.
STYLE = (FOLDER / "view.css").read_text(encoding="utf-8")

_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([\w]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?function|class|const|let)", re.MULTILINE)


def compose(name: str) -> str:
    """Return the module `js/<name>.js` with everything it imports in one text.

    All names share one scope, so a name may be declared in one file only (a test checks each
    composed view with `node --check`).
    """
    ordered: dict[str, str] = {}
    _collect(f"{name}.js", ordered)
    return "\n".join(ordered.values())


def _collect(file: str, ordered: dict[str, str]) -> None:
    text = (FOLDER / file).read_text(encoding="utf-8")
    for imported in _IMPORT.findall(text):
        if imported not in ordered:
            _collect(imported, ordered)
    ordered[file] = _EXPORT.sub("", _IMPORT.sub("", text))
