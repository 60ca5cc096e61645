"""Batches of the stream, as what an objective takes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cubeclf_core.axes import Shape3
from cubeclf_core.resample import resample
from cubeclf_core.stream import Batch


def cut_middle(cuboids: Float[Tensor, "b c z y x"], shape: Shape3) -> Float[Tensor, "b c cz cy cx"]:
    """Cut the middle out of cuboids, which may be canvases larger than `shape`; a view of them."""
    low = [(have - want) // 2 for have, want in zip(cuboids.shape[2:], shape, strict=True)]
    z, y, x = (slice(at, at + want) for at, want in zip(low, shape, strict=True))
    return cuboids[:, :, z, y, x]


def to_network(
    batch: Batch, shape: Shape3, device: torch.device | str = "cpu"
) -> Float[Tensor, "b c z y x"]:
    """Bring a batch of a stream to a device as float32 counts in the network's voxels."""
    if len(batch.parts) == 1:
        return resample(batch.parts[0].cuboids, shape, device)
    n_channels = batch.parts[0].cuboids.shape[1]
    cuboids = torch.empty(len(batch.brain), n_channels, *shape, device=device)
    for part in batch.parts:
        cuboids[torch.from_numpy(part.rows)] = resample(part.cuboids, shape, device)
    return cuboids
