"""Raw cuboids to the network's voxels, on its device: what the CPU sends is small and cheap.

Interpolation is that of cellfinder 1.10, so that a classifier sees the same voxels here and there.
It is done axis by axis, as products with small matrices, which a CPU does faster than torch's
own, which works out every voxel's neighbours.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cubeclf_core.axes import Shape3


def resample(
    cuboids: npt.NDArray[np.generic], shape: Shape3, device: torch.device | str = "cpu"
) -> Float[Tensor, "b c z y x"]:
    """Resample raw cuboids trilinearly to the network's voxels; a copy as float32 if they fit.

    Parameters
    ----------
    cuboids
        Shape (b, c, z, y, x), uint8, uint16 or float32.
    shape
        z y x, wanted.
    device
        Where to.
    """
    tensor = torch.from_numpy(cuboids).to(device).to(torch.float32, copy=True)
    z, y, x = (
        None if n == to else _weights(n, to, device)
        for n, to in zip(tensor.shape[2:], shape, strict=True)
    )
    with torch.autocast(tensor.device.type, enabled=False):  # counts have more digits than halves
        if z is not None:
            tensor = (z @ tensor.flatten(3)).unflatten(3, tensor.shape[3:])
        if y is not None:
            tensor = y @ tensor
        return tensor if x is None else tensor @ x.T


@cache
def _weights(n: int, to: int, device: torch.device | str) -> Float[Tensor, "to n"]:
    """What each of `to` voxels along an axis is made of, of n."""
    found = F.interpolate(torch.eye(n)[None], size=to, mode="linear")[0].T.contiguous()
    return found.to(device)
