"""A view in a bare browser page: its module and its state, without JupyterLab and without a kernel.

What a reopened notebook has, in a second instead of twenty. What is of JupyterLab (focus, themes,
trust, the wire) is tested in `tests/browser/`.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

MODEL = Path(__file__).resolve().parents[1] / "views" / "model.mjs"
_PAGE = """<!doctype html><meta charset="utf-8"><style>{css}</style>
<body style="--jp-layout-color1: {paper}; --jp-content-font-color1: {ink}; background: {paper};
 --jp-content-font-color2: #888; --jp-border-color2: #888; --jp-brand-color1: #1976d2">
<div id="at"></div></body>"""
_RENDER = """async ([code, modelCode, state]) => {
  const load = (text) => import(URL.createObjectURL(new Blob([text], {type: "text/javascript"})));
  const { Model } = await load(modelCode);
  const decode = (text) => {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const apart = new Uint8Array(bytes.length + 1); // unaligned, as over the wire
    apart.set(bytes, 1);
    return new DataView(apart.buffer, 1);
  };
  for (const [name, value] of Object.entries(state))
    if (value && value.bytes !== undefined) state[name] = decode(value.bytes);
  window.model = new Model(state);
  const view = (await load(code)).default;
  const el = document.getElementById("at").appendChild(document.createElement("div"));
  window.leave = view.render({ model: window.model, el });
}"""


def show(page: Any, view: Any, *, dark: bool = False) -> None:
    """Render a view's present state in a playwright page; waits until it has been drawn.

    The model is `window.model`, the function that ends it `window.leave`. Several views may be
    shown in one page: call `add` for the others.
    """
    paper, ink = ("#111111", "#e8e8e8") if dark else ("#ffffff", "#1f1f1f")
    page.set_content(_PAGE.format(css=view._css, paper=paper, ink=ink))
    add(page, view)


def add(page: Any, view: Any) -> None:
    """Render a further view below the others."""
    before = page.locator(".wb-view[data-step]").count()
    page.evaluate(_RENDER, [view._esm, MODEL.read_text("utf-8"), state_of(view)])
    page.wait_for_function(
        "n => document.querySelectorAll('.wb-view[data-step]').length > n || "
        "[...document.querySelectorAll('.wb-problem')].some((p) => p.textContent)",
        arg=before,
        timeout=30_000,
    )


def state_of(view: Any) -> dict[str, Any]:
    """Return what the front end gets of a view, bytes as {"bytes": base64}."""
    state = {k: v for k, v in view.get_state().items() if k not in ("_esm", "_css", "layout")}
    packed = {
        name: {"bytes": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
        for name, value in state.items()
    }
    return dict(json.loads(json.dumps(packed)))
