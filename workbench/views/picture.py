"""Still pictures of views, for readers without a running widget, and the colours they share.

A saved notebook on a page that runs no widgets shows these. Drawn by matplotlib without its global
state, and kept small: a committed notebook holds one for every view.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's hues without black; js/colours.js has the same, and a test compares them.
HUES = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
_DPI = 96


def rgb(text: str) -> tuple[int, int, int]:
    """Return the three bytes of "#rrggbb"."""
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def sequence_colours(count: int) -> npt.NDArray[np.uint8]:
    """Return the colours of sequences 0 to `count` - 1, [count, 3]; as `sequenceColour` in JS."""
    colours = np.empty((count, 3), np.float64)
    hues = np.array([rgb(hue) for hue in HUES], np.float64)
    for number in range(count):
        hue, tier = hues[number % len(HUES)], number // len(HUES) % 3
        towards = (hue, 255.0, 0.0)[tier]
        colours[number] = hue + (towards - hue) * (0.35 if tier else 0)
    return np.floor(colours + 0.5).astype(np.uint8)


def figure_png(draw: Callable[[Figure], None], width: float = 9.0, height: float = 3.6) -> bytes:
    """Return what `draw(figure)` draws as PNG bytes; sizes in inches, 256 colours at most.

    All text is shown as it is: request ids and tokens may hold what matplotlib takes for formulas.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from PIL import Image

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    draw(figure)
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
    picture = Image.fromarray(np.ascontiguousarray(pixels)).quantize(256, dither=Image.Dither.NONE)
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()
