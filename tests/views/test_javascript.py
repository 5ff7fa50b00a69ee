"""The views' JavaScript, without a browser: it parses, composes, and does its sums."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.views import esm
from workbench.views.picture import HUES, sequence_colours

FILES = sorted(path.stem for path in esm.FOLDER.glob("*.js"))
VIEWS = [f for f in FILES if "export default" in (esm.FOLDER / f"{f}.js").read_text("utf-8")]
TESTS = sorted(Path(__file__).parent.glob("*.test.mjs"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_units(path: Path, node: Any) -> None:
    done = node("--test", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n# pass 0\n" not in done.stdout, "no test was found"


@pytest.mark.parametrize("name", FILES)
def test_a_file_parses_composed_with_what_it_imports(name: str, node: Any, tmp_path: Path) -> None:
    composed = tmp_path / "composed.mjs"
    composed.write_text(esm.compose(name), encoding="utf-8")
    done = node("--check", str(composed))
    assert done.returncode == 0, done.stderr
    assert "import " not in composed.read_text("utf-8").replace("// ", ""), "an import is left"


def test_composing_puts_each_file_once_before_who_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: Any
) -> None:
    monkeypatch.setattr(esm, "FOLDER", tmp_path)
    (tmp_path / "base.js").write_text("export const one = 1;\n")
    (tmp_path / "left.js").write_text('import { one } from "./base.js";\nexport const l = one;\n')
    (tmp_path / "top.js").write_text(
        'import { one } from "./base.js";\nimport {\n  l,\n} from "./left.js";\n'
        "export async function sum() { return one + l; }\nexport default { sum };\n"
    )
    text = esm.compose("top") + "\nconsole.log(await sum());\n"
    assert text.count("const one") == 1
    done = node("--input-type=module", "-", stdin=text)
    assert done.stdout == "2\n", done.stderr


def test_python_and_javascript_use_the_same_colours(node: Any) -> None:
    program = f"""
        import {{ HUES, sequenceColour }} from {(esm.FOLDER / "colours.js").as_uri()!r};
        const colours = Array.from({{ length: 30 }}, (_, n) => sequenceColour(n));
        console.log(JSON.stringify([HUES, colours]));
    """
    done = node("--input-type=module", "-", stdin=program)
    hues, colours = json.loads(done.stdout)
    assert tuple(hues) == HUES
    assert colours == sequence_colours(30).tolist()
