"""What three axes are given as; always z, y, x."""

from __future__ import annotations

Shape3 = tuple[int, int, int]
"""Voxels along z, y, x."""

Size3 = tuple[float, float, float]
"""Lengths along z, y, x, in µm."""
