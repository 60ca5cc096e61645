"""What a training step costs: against the same on a batch in memory, and what its parts are.

The step is that of masked autoencoding, the fastest: if the stream keeps up with it, it keeps up
with all.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from lightning_fabric import Fabric
from torch import Tensor

from benchmarks.learning.config import SpeedEffort
from benchmarks.meter import metered
from benchmarks.output import Figures
from benchmarks.streams import make_stream, to_fill, told
from benchmarks.volume import write_brain
from cubeclf_core.backbones import build_backbone
from cubeclf_core.console import say
from cubeclf_core.draws import Draws
from cubeclf_core.engine import make_fabric
from cubeclf_core.stream import CuboidStream
from cubeclf_core.tissue import survey
from cubeclf_core.vit import Vit3d, Vit3dConfig
from cubeclf_core.volumes import open_volume
from pretrain.batches import to_network
from pretrain.config import PretrainConfig
from pretrain.fit import compile_networks
from pretrain.objective import Objective
from pretrain.run import build_objective
from pretrain.views import make_view

_MEMORY_BYTES = 1 << 28


class SeesAll(Vit3d):
    """An encoder that computes all tokens, also those that its caller leaves out afterwards."""

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "b c z y x"],
        keep: Int[Tensor, "b kept"] | None = None,
        masked: Bool[Tensor, "b patch"] | None = None,
        mask_token: Float[Tensor, "1 1 width"] | None = None,
    ) -> Float[Tensor, "b token width"]:
        """Encode cuboids; see `Vit3d.forward`."""
        tokens = super().forward(x, None, masked, mask_token)
        if keep is None:
            return tokens
        index = torch.cat([torch.zeros_like(keep[:, :1]), keep + 1], dim=1)
        return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))


class Trainer:
    """Takes training steps, as the run does, and nothing else.

    Parameters
    ----------
    config
        Of the run.
    backbone
        To be trained.
    fabric
        The device.
    """

    def __init__(self, config: PretrainConfig, backbone: Vit3d, fabric: Fabric) -> None:
        self.config = config
        self.objective: Objective = build_objective(config, backbone)
        if config.compile:
            compile_networks(self.objective)
        trained = [p for p in self.objective.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-5)
        self._fabric = fabric
        self._model: Any
        self._optimizer: Any
        self._model, self._optimizer = fabric.setup(self.objective, optimizer)
        self._done = 0

    def step(self, cuboids: Float[Tensor, "b c z y x"]) -> None:
        """Learn from a batch."""
        self._done += 1
        draws = Draws(0, self._done, range(len(cuboids)), self._fabric.device)
        loss, told = self._model(cuboids, draws, 0.5)
        self._fabric.backward(loss)
        self.objective.before_update(0.5)
        self._fabric.clip_gradients(self._model, self._optimizer, max_norm=self.config.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.objective.after_update(0.5)
        del told["per_cuboid"]
        for value in (loss.detach(), *told.values()):
            float(value)  # which waits for the device


def training_speed(effort: SpeedEffort, folder: Path) -> Figures:
    """Measure training steps.

    Parameters
    ----------
    effort
        How much to measure.
    folder
        Where to write the volume that is streamed.

    Returns
    -------
    dict
        ``step_share``, speed on streamed data over that on one batch in memory, which is float32
        and on the device already; ``mae_saving``, seconds of a step whose encoder computes all
        tokens over those of one that leaves out what is masked; ``augmentation_share``, seconds of
        making a view over those of a step; ``step_seconds``, in memory. Medians over rounds.
    """
    config = PretrainConfig(
        ("any",), out=folder, method="mae", size=effort.size, batch_size=effort.batch_size
    )
    fabric = make_fabric(config.precision)
    network = Vit3dConfig(size=config.size, channels=2)
    backbone = build_backbone(network, 0)
    unskipping = SeesAll(network)
    unskipping.load_state_dict(backbone.state_dict())
    trainer, slow = Trainer(config, backbone, fabric), Trainer(config, unskipping, fabric)
    stream = open_stream(trainer.objective, effort, folder)
    batches = stream.batches(0, 1 << 40)
    say(f"training speed: filling a pool of {stream.describe()}")
    for _ in range(to_fill(stream)):
        next(batches)
    held = to_network(next(batches), stream.shape, fabric.device)

    def streamed() -> None:
        trainer.step(to_network(next(batches), stream.shape, fabric.device))

    def view() -> None:
        draws = Draws(0, 0, range(len(held)), fabric.device)
        drawn = make_view(held, network.cuboid_shape, draws, config.augment, network.voxel_size_um)
        float(drawn[0, 0, 0, 0, 0])

    few = max(1, effort.steps // 3)  # for what is no close call
    ways = {
        "streamed": (streamed, effort.steps),
        "held": (lambda: trainer.step(held), effort.steps),
        "unskipped": (lambda: slow.step(held), few),
        "view": (view, few),
    }
    rounds = list(_rounds(ways, effort.rounds))
    return {
        "step_share": statistics.median(r["held"] / r["streamed"] for r in rounds),
        "mae_saving": statistics.median(r["unskipped"] / r["held"] for r in rounds),
        "augmentation_share": statistics.median(r["view"] / r["held"] for r in rounds),
        "step_seconds": statistics.median(r["held"] for r in rounds),
        "step_cuboids_per_s": effort.batch_size / statistics.median(r["held"] for r in rounds),
        "step_device": fabric.device.type,
        "step_threads": torch.get_num_threads(),
    }


def _rounds(
    ways: Mapping[str, tuple[Callable[[], None], int]], n: int
) -> Iterator[dict[str, float]]:
    """Measure every way once a round, some steps of it, after a round that does not count.

    Gives seconds a step.

    What the stream still reads when the steps are done counts as theirs: as many batches are ready
    at the end as were at the start.
    """
    for i in range(n + 1):
        seconds = {}
        for name, (step, times) in ways.items():
            with metered() as cost:
                for _ in range(times):
                    step()
            seconds[name] = cost.wall / times
        shown = ", ".join(f"{name} {value * 1000:.0f} ms" for name, value in seconds.items())
        say(f"training speed, round {i} of {n}: {shown}")
        if i:
            yield seconds


def open_stream(objective: Objective, effort: SpeedEffort, folder: Path) -> CuboidStream:
    """Stream canvases from a volume in `folder`, which is made unless it is there."""
    path = folder / "streamed.ome.zarr"
    if not path.exists():
        write_brain(path, effort.shape)
    volume = told(open_volume(path))
    return make_stream(
        volume,
        survey(volume, volume.n_channels),
        memory_bytes=_MEMORY_BYTES,
        shape=objective.canvas_shape,
        batch_size=effort.batch_size,
    )
