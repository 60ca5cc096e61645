"""What several pictures have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

Array = npt.NDArray[Any]


def scale_bar(axes: Axes, height_um: float, width_um: float, *, share: float = 0.3) -> None:
    """Draw a scale bar of a round length into the lower left of an image.

    Parameters
    ----------
    axes
        Of an image whose extent is in µm, with the origin at its upper left.
    height_um, width_um
        Of the image.
    share
        Of the width that the bar takes at most.
    """
    length = _round_length(share * width_um)
    bottom, left = 0.96 * height_um, 0.04 * width_um
    axes.plot((left, left + length), (bottom, bottom), color="w", lw=2.5)
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    axes.text(left, bottom, label, color="w", fontsize=8, va="bottom", ha="left")


def _round_length(most_um: float) -> float:
    """Give the largest 1, 2 or 5 times a power of ten that is not above a length."""
    power = 10.0 ** np.floor(np.log10(most_um))
    return float(power * max(m for m in (1, 2, 5) if m * power <= most_um))


def plain_text(text: str, most: int = 60) -> str:
    """Give a text from outside as a figure can show it: not as a formula, and not too long."""
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return text.replace("$", r"\$")
