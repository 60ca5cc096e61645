"""What is looked at while a run goes: the embeddings of some cuboids, always the same ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from cubeclf_core.axes import Shape3
from cubeclf_core.metrics import embedding_health, rank_me
from cubeclf_core.stream import CuboidStream
from cubeclf_core.vit import Vit3d
from pretrain.batches import cut_middle, to_network
from pretrain.probes import Probe, embed, shortcuts

_FIRST = 1 << 31  # step of the stream: cuboids drawn as training's are, but apart from them
_CUBOIDS = 256


class Watch:
    """Health, shortcuts and probe of a backbone in training.

    Parameters
    ----------
    stream
        Where the cuboids to look at come from.
    untrained
        The network before training; what the trained one is compared with.
    probe
        Labelled cuboids, if there are any.

    Attributes
    ----------
    cuboids
        Raw counts, shape (n, c, z, y, x): those that are looked at.
    untrained
        What was found of the untrained network.
    found
        What was last found.
    best_probe
        Highest AUC of the linear probe so far.
    """

    def __init__(self, stream: CuboidStream, untrained: Vit3d, probe: Probe | None) -> None:
        self.best_probe = -1.0
        self._probe = probe
        self._draw(stream, untrained.config.cuboid_shape)
        self.untrained = self.look(untrained)
        self.found: dict[str, float] = {}

    def _draw(self, stream: CuboidStream, shape: Shape3) -> None:
        cuboids: list[Tensor] = []
        brain: list[npt.NDArray[np.int64]] = []
        depth: list[npt.NDArray[np.float64]] = []
        heights = np.array([level.shape[0] for level in stream.levels])
        n_steps = -(-_CUBOIDS // stream.local_batch)
        for batch in stream.batches(_FIRST, _FIRST + n_steps):
            cuboids.append(cut_middle(to_network(batch, stream.shape), shape).clone())
            brain.append(batch.brain)
            depth.append(batch.origin[:, 0] / heights[batch.brain])
        self.cuboids: Float[Tensor, "n c z y x"] = torch.cat(cuboids)[:_CUBOIDS]
        self._brain = np.concatenate(brain)[:_CUBOIDS]
        self._depth = np.concatenate(depth)[:_CUBOIDS]
        self._intensity = self.cuboids[:, 0].mean(dim=(1, 2, 3)).double().numpy()

    def look(self, backbone: Vit3d) -> dict[str, float]:
        """Measure a backbone: numbers for the log, by name."""
        token, pooled = embed(backbone, self.cuboids)
        found = {**embedding_health(pooled), "rank_me_class": rank_me(token)}
        found |= shortcuts(pooled, self._brain, self._depth, self._intensity)
        if self._probe is not None:
            found |= self._probe.measure(backbone)
        self.found = found
        return found

    def improved(self, found: Mapping[str, float]) -> bool:
        """Whether the probe is better than ever before."""
        score = found.get("probe_linear_auc", -1.0)
        better = score > self.best_probe
        self.best_probe = max(self.best_probe, score)
        return better
