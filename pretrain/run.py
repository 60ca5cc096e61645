"""The run of `cubeclf-pretrain`: brains in, backbone out, in one loop that reads top to bottom."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from lightly.utils.scheduler import cosine_warmup_schedule
from lightning_fabric import Fabric
from matplotlib.figure import Figure
from torch import Tensor

from cubeclf_core.augment import generator
from cubeclf_core.backbones import build_backbone, save_backbone
from cubeclf_core.brains import Brain, load_brains
from cubeclf_core.console import progress
from cubeclf_core.errors import InputError, RunFailed, VolumeError
from cubeclf_core.files import check_output
from cubeclf_core.metrics import rank_me
from cubeclf_core.normalise import standardise
from cubeclf_core.plots import tissue_map, training_curves
from cubeclf_core.runs import RunFolder
from cubeclf_core.stream import Batch, CuboidStream
from cubeclf_core.tissue import Survey, examine, overview
from cubeclf_core.vit import Vit3d, Vit3dConfig
from pretrain.batches import to_network
from pretrain.config import PretrainConfig
from pretrain.dino import Dino
from pretrain.mae import Mae
from pretrain.objective import Objective

_MONITOR_STEP = 1 << 31  # of the stream: cuboids for monitors, drawn as training's but apart
_MONITOR_CUBOIDS = 256
_WARM_UP = 0.1  # share of the steps
_CLIP = 3.0  # norm of the gradient


def pretrain(config: PretrainConfig) -> None:
    """Run one pretraining to its end and export the backbone.

    Raises
    ------
    InputError
        If the settings or the brains cannot be used; nothing has been written then.
    RunFailed
        If the loss is no longer finite.
    """
    brains = load_brains(config.brains, voxel_size_um=config.voxel_size_um)
    inputs = [path for brain in brains for path in brain.paths]
    check_output(config.out, overwrite=config.overwrite, inputs=inputs)
    network = Vit3dConfig(size=config.size, channels=_channels(config, brains))
    objective = build_objective(config, build_backbone(network, config.seed))
    surveys, pictures = _look_over(brains, network.channels)
    stream = CuboidStream(
        brains,
        shape=objective.canvas_shape,
        voxel_size_um=network.voxel_size_um,
        n_channels=network.channels,
        batch_size=config.batch_size,
        seed=config.seed,
        weights=[brain.weight for brain in brains],
        candidate_share=config.candidate_share,
        draws_per_chunk=config.draws_per_chunk,
        memory_bytes=round(config.memory_gb * (1 << 30)),
        surveys=surveys,
    )
    run = RunFolder(config.out, config)
    run.tell(f"pretraining {config.method} {config.size} on {', '.join(b.name for b in brains)}")
    run.tell(f"stream    {stream.describe()}")
    for brain, seen, picture in zip(brains, surveys, pictures, strict=True):
        path = run.save_figure(f"figures/tissue_{brain.name}.png", picture)
        run.tell(f"tissue    {seen.statistics.tissue:.0%} of {brain.name}: {path}")
    told = {brain.name: asdict(s.statistics) for brain, s in zip(brains, surveys, strict=True)}
    run.write_json("statistics.json", told)
    fit = Fit(config, objective, stream, run)
    try:
        try:
            fit.train()
        finally:  # also when interrupted: what has been learned so far is kept
            if fit.done:
                backbone = run.exported / "backbone.safetensors"
                save_backbone(backbone, objective.exported, fit.account())
        fit.finish()
    except VolumeError as error:  # valid input so far: it failed while running
        raise RunFailed(f"stopped at step {fit.done}: {error}") from error
    finally:
        fit.list_faults()


def _look_over(brains: Sequence[Brain], n_channels: int) -> tuple[list[Survey], list[Figure]]:
    """Survey brains and draw where their tissue is; one overview at a time is in memory."""
    surveys, pictures = [], []
    for brain in brains:
        seen = overview(brain.volume, n_channels)
        surveys.append(examine(seen))
        pictures.append(tissue_map(brain.name, seen.voxels, surveys[-1].mask, seen.voxel_size_um))
    return surveys, pictures


@dataclass
class Fit:
    """One training: what moves it forward, and what it tells while it goes."""

    config: PretrainConfig
    objective: Objective
    stream: CuboidStream
    run: RunFolder
    done: int = 0
    listed: int = 0

    def account(self) -> dict[str, object]:
        """What a checkpoint says of the training it comes from."""
        return {
            "objective": self.config.method,
            "steps": self.done,
            "batch_size": self.config.batch_size,
            "seed": self.config.seed,
            "data": [brain.name for brain in self.stream.brains],
        }

    def train(self) -> None:
        """Take all steps."""
        config = self.config
        fabric = Fabric(accelerator="auto", devices=1, precision=config.precision)
        optimizer = torch.optim.AdamW(
            _parameter_groups(self.objective, config.weight_decay), lr=0.0, betas=(0.9, 0.95)
        )
        model, optimizer = fabric.setup(self.objective, optimizer)
        start, waited = time.monotonic(), 0.0
        batches = _timed(self.stream.batches(0, config.steps))
        with progress("pretraining", config.steps, unit="steps") as advance:
            for step, (seconds, batch) in enumerate(batches):
                told = self._step(fabric, model, optimizer, step, batch)
                self.done = step + 1
                waited += seconds
                if step % config.log_every == 0 or self.done == config.steps:
                    elapsed = time.monotonic() - start
                    self.run.log(
                        step=step,
                        **{name: float(value.detach()) for name, value in told.items()},
                        learning_rate=self._learning_rate(step),
                        cuboids_per_s=self.done * config.batch_size / elapsed,
                        wait_share=waited / elapsed,
                        faults=len(self.stream.faults),
                    )
                    self.list_faults()
                advance(note=f"loss {float(told['loss'].detach()):.4f}")

    def _step(
        self, fabric: Fabric, model: Any, optimizer: Any, step: int, batch: Batch
    ) -> dict[str, Tensor]:
        """Learn from one batch; returns the loss and what else the objective tells."""
        share = step / self.config.steps
        for group in optimizer.param_groups:
            group["lr"] = self._learning_rate(step)
        random = generator(self.config.seed, step, device=fabric.device)
        cuboids = to_network(batch, self.stream.shape, fabric.device)
        loss, told = model(cuboids, random, share)
        _check_finite(loss, step)
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        self.objective.before_update(share)
        fabric.clip_gradients(model, optimizer, max_norm=_CLIP, error_if_nonfinite=False)
        optimizer.step()
        self.objective.after_update(share)
        return {"loss": loss, **told}

    def list_faults(self) -> None:
        """Write down the regions that could not be read since the last time."""
        for fault in self.stream.faults[self.listed :]:
            where = f"{fault.brain} at z y x {list(fault.start)}"
            self.run.tell(f"fault     {where}, another region drawn instead: {fault.reason}")
            self.run.append("faults.jsonl", asdict(fault))
        self.listed = len(self.stream.faults)

    def finish(self) -> None:
        """Draw the pictures and say how the result compares with the untrained network."""
        curves = self.run.save_figure(
            "progress.png", training_curves(self.run.path / "metrics.jsonl")
        )
        n_batches = -(-_MONITOR_CUBOIDS // self.config.batch_size)
        steps = range(_MONITOR_STEP, _MONITOR_STEP + n_batches)
        batches = self.stream.batches(steps.start, steps.stop)
        monitored = torch.cat([to_network(batch, self.stream.shape) for batch in batches])
        ranks = self._ranks(monitored)
        self.run.write_json("metrics.json", ranks)
        objective = self.objective.cpu().eval()
        with torch.no_grad():
            picture = objective.picture(monitored, generator(self.config.seed, _MONITOR_STEP))
        if picture:
            mosaic = self.run.save_figure("figures/reconstruction.png", picture)
            self.run.tell(f"picture   {mosaic}")
        self.run.tell(f"picture   {curves}")
        for name, rank in ranks.items():
            before = rank["untrained"]
            self.run.tell(f"RankMe    {name} {rank['trained']:.1f} (untrained {before:.1f})")
        self.run.tell(f"backbone  {self.run.exported / 'backbone.safetensors'}")

    def _ranks(self, cuboids: Float[Tensor, "n c z y x"]) -> dict[str, dict[str, float]]:
        """RankMe of what the backbone says, and of what it said before training."""
        exported = self.objective.exported.cpu().eval()
        untrained = build_backbone(exported.config, self.config.seed).eval()
        ranks: dict[str, dict[str, float]] = {"class_token": {}, "pooled": {}}
        for name, backbone in (("trained", exported), ("untrained", untrained)):
            token, pooled = _embeddings(backbone, cuboids)
            ranks["class_token"][name] = rank_me(token)
            ranks["pooled"][name] = rank_me(pooled)
        return ranks

    def _learning_rate(self, step: int) -> float:
        peak = self.config.learning_rate
        warm_up = max(1, round(_WARM_UP * self.config.steps))
        rate: float = cosine_warmup_schedule(
            step=step,
            max_steps=self.config.steps + 1,
            start_value=peak,
            end_value=peak / 1000,
            warmup_steps=warm_up,
            warmup_start_value=peak / warm_up,
        )
        return rate


def build_objective(config: PretrainConfig, backbone: Vit3d) -> Objective:
    """Make the objective that the config names; its own weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 1)
        match config.method:
            case "mae":
                return Mae(backbone, config.mae)
            case "dino":
                return Dino(backbone, config.dino)


def _channels(config: PretrainConfig, brains: Sequence[Brain]) -> int:
    common = min(brain.volume.n_channels for brain in brains)
    if config.channels is None:
        return min(common, 2)
    if config.channels > common:
        lacking = next(b.name for b in brains if b.volume.n_channels < config.channels)
        raise InputError(f"--channels {config.channels}, but brain {lacking} has no background")
    return config.channels


def _parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _timed(batches: Iterator[Batch]) -> Iterator[tuple[float, Batch]]:
    """Pair each batch with the seconds that it was waited for."""
    while True:
        start = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            return
        yield time.monotonic() - start, batch


def _check_finite(loss: Tensor, step: int) -> None:
    if not torch.isfinite(loss):  # the stream lets no such voxels through
        found = float(loss.detach())
        raise RunFailed(f"the loss of step {step} is {found}: try a lower --learning-rate")


@torch.no_grad()
def _embeddings(
    backbone: Vit3d, cuboids: Float[Tensor, "n c z y x"]
) -> tuple[Float[Tensor, "n width"], Float[Tensor, "n feature"]]:
    """Class token and pooled features of the middle of each cuboid (a canvas may be larger)."""
    middle = [
        slice((have - want) // 2, (have - want) // 2 + want)
        for have, want in zip(cuboids.shape[2:], backbone.config.cuboid_shape, strict=True)
    ]
    cut = standardise(cuboids[:, :, middle[0], middle[1], middle[2]])
    tokens = torch.cat([backbone(part) for part in cut.split(64)])
    return tokens[:, 0], backbone.pool_tokens(tokens)
