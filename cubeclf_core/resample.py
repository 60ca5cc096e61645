"""Raw cuboids to the network's voxels, on its device: what the CPU sends is small and cheap.

Interpolation is that of cellfinder 1.10, so that a classifier sees the same voxels here and there.
"""

from __future__ import annotations

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
    if tensor.shape[2:] == shape:
        return tensor
    return F.interpolate(tensor, size=shape, mode="trilinear")
