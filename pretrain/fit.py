"""The training loop: batches in, steps taken, everything told, and nothing lost by a kill."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from cubeclf_core.console import progress
from cubeclf_core.draws import Draws
from cubeclf_core.engine import (
    asked_anywhere,
    gather_objects,
    on_rank_0,
    raise_on_all,
    save_state,
)
from cubeclf_core.errors import RunFailed, Stopped
from cubeclf_core.pretraining_plots import training_curves
from cubeclf_core.runs import RunFolder
from cubeclf_core.signals import StopRequest, stop_on_signals
from cubeclf_core.stream import Batch, CuboidStream
from cubeclf_core.tracking import Tracker
from cubeclf_core.vit import Vit3d
from pretrain.batches import to_network
from pretrain.config import PretrainConfig
from pretrain.distributed import mean_over_ranks, sum_over_ranks
from pretrain.monitors import Collapsed, Monitors
from pretrain.objective import Objective
from pretrain.schedules import learning_rate, weight_decay
from pretrain.watch import Watch

CHECKPOINT = "checkpoints/last.safetensors"
_ADVICE = "start anew, in another --out, with a lower --learning-rate"
_BROKEN = "the voxels there are not finite: mend or leave out that brain"
_ASK_EVERY = 10  # steps between two questions to all ranks whether one was told to stop


@dataclass(kw_only=True)
class Fit:
    """One training: what moves it forward, and what it tells while it goes."""

    config: PretrainConfig
    fabric: Fabric
    objective: Objective
    optimizer: torch.optim.Optimizer
    stream: CuboidStream
    run: RunFolder
    monitors: Monitors
    export: Callable[[Fit, str], None]
    trackers: Sequence[Tracker] = ()
    done: int = 0
    listed: int = 0  # of the stream's faults
    n_faults: int = 0  # over all resumes and ranks
    watch: Watch | None = None  # on rank 0
    seconds: float = 0.0  # of training, over all resumes

    def restore(self, told: Mapping[str, Any]) -> None:
        """Go on from the last checkpoint of the run's folder, given what it tells."""
        self.done, self.seconds = int(told["step"]), float(told["seconds"])
        self.n_faults = int(told["n_faults"])
        self.monitors.restore(told["monitors"])
        for name in ("metrics.jsonl", "faults.jsonl"):
            self.run.trim(name, self.done)

    def train(self) -> None:
        """Take all steps that are left.

        Raises
        ------
        Stopped
            If a signal asked for it; a checkpoint has been written.
        KeyboardInterrupt
            Likewise, with Ctrl-C; the backbone as it is has been exported too.
        RunFailed
            If the loss is not finite, the embeddings collapsed, or a checkpoint cannot be written.
        """
        config, rank, ranks = self.config, self.fabric.global_rank, self.fabric.world_size
        share = config.batch_size // ranks
        items = range(rank * share, (rank + 1) * share)
        looks, saves = config.every(config.monitor_every), config.every(config.checkpoint_every)
        self.objective.train()
        if config.compile:
            compile_networks(self.objective)
        model, optimizer = self.fabric.setup(self.objective, self.optimizer)
        start, waited, first, before = time.monotonic(), 0.0, self.done, self.seconds
        batches = _timed(self.stream.batches(first, config.steps))
        with (
            stop_on_signals() as stop,
            progress("pretraining", config.steps, unit="steps", done=first) as advance,
        ):
            self._look()
            for step, (seconds, batch) in enumerate(batches, first):
                told = self._step(model, optimizer, step, batch, items)
                self.done = step + 1
                waited += seconds
                elapsed = time.monotonic() - start
                self.seconds = before + elapsed
                ended = self.done == config.steps
                if step % config.log_every == 0 or ended:
                    rate = (self.done - first) * config.batch_size / elapsed
                    told |= {"cuboids_per_s": rate, "wait_share": waited / elapsed}
                    self.list_faults(together=True)
                    self.log(step, told | {"faults": self.n_faults})
                if self.done % looks == 0 or ended:
                    self._look()
                    self.draw()
                asked = self.done % _ASK_EVERY == 0 or ranks == 1
                if not ended and asked and asked_anywhere(stop, self.fabric):
                    self._leave(stop)
                if self.done % saves == 0 or ended:
                    self.checkpoint()
                advance(note=f"loss {told['loss']:.4f}")

    def _leave(self, stop: StopRequest) -> None:
        """Write a checkpoint, and raise what ends the run; all ranks do so together."""
        self.checkpoint()
        signals = gather_objects(self.fabric, stop.signal)
        asked = next(signal for signal in signals if signal is not None)
        how = f"after step {self.done - 1}; the same command with --resume goes on"
        if asked == "SIGINT":
            on_rank_0(self.fabric, lambda: self.export(self, "backbone"))
            self.run.tell(f"stopped   {how}")
            raise KeyboardInterrupt
        raise Stopped(f"stopped by {asked} {how}")

    def _step(
        self, model: Any, optimizer: Any, step: int, batch: Batch, items: range
    ) -> dict[str, float]:
        """Learn from one batch; returns the loss and what else there is to tell."""
        config, n = self.config, self.config.accumulate
        share = step / config.steps
        rate, decay = learning_rate(config, step), weight_decay(config, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
            group["weight_decay"] = decay if group["decays"] else 0.0
        torch.manual_seed(config.seed * 1_000_003 + step * 1_009 + items.start)  # for drop path
        cuboids = to_network(batch, self.stream.shape, self.fabric.device)
        part = len(items) // n
        sums: dict[str, Tensor] = {}
        per_cuboid: list[Tensor] = []
        for i in range(n):
            rows = slice(i * part, (i + 1) * part)
            draws = Draws(config.seed, step, items[rows], self.fabric.device)
            with self.fabric.no_backward_sync(model, enabled=i < n - 1):
                loss, told = model(cuboids[rows], draws, share)
                per_cuboid.append(told.pop("per_cuboid"))
                self.fabric.backward(loss / n)
            for name, value in {"loss": loss, **told}.items():
                sums[name] = sums.get(name, 0.0) + value.detach() / n
        self.objective.before_update(share)
        norm = self.fabric.clip_gradients(
            model, optimizer, max_norm=config.clip, error_if_nonfinite=False
        )
        assert norm is not None  # as a largest one is given
        sums["gradient_norm"] = norm.detach()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.objective.after_update(share)
        # Here alone a step waits for what its device computes. What is not finite has spoilt the
        # weights by now, but with it the run ends, and the last checkpoint is from before.
        means = mean_over_ranks(torch.stack([value.float() for value in sums.values()])).tolist()
        told = dict(zip(sums, means, strict=True))
        if not math.isfinite(told["loss"]):
            raise self._not_finite(told["loss"], torch.cat(per_cuboid), cuboids, step, batch)
        if not math.isfinite(told["gradient_norm"]):
            raise RunFailed(f"the gradient of step {step} is {told['gradient_norm']}; {_ADVICE}")
        self._warn(self.monitors.check(step, told))
        return told | {"learning_rate": rate, "weight_decay": decay}

    def _not_finite(
        self, loss: float, per_cuboid: Tensor, cuboids: Tensor, step: int, batch: Batch
    ) -> RunFailed:
        """Say where a loss came from that is not finite; all ranks do so together."""
        # The raw ones first: a broken cuboid breaks those that are compared with it.
        raw = ~torch.isfinite(cuboids).flatten(1).all(1)
        broken = (raw if raw.any() else ~torch.isfinite(per_cuboid)).nonzero().flatten().tolist()
        where = ""
        if len(broken) == len(per_cuboid):
            where = ", for every cuboid alike"
        elif broken:
            brain = self.stream.brains[int(batch.brain[broken[0]])].name
            at = f"brain {brain} at z y x {batch.origin[broken[0]].tolist()}"
            where = f", from {len(broken)} cuboids, the first in {at}"
        where = next(filter(None, gather_objects(self.fabric, where)), "")
        advice = _BROKEN if sum_over_ranks(raw.any().float()) else _ADVICE
        return RunFailed(f"the loss of step {step} is {loss}{where}; {advice}")

    def device_name(self) -> str:
        """What the training runs on, for people."""
        device = self.fabric.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    def _look(self) -> None:
        """Measure the backbone before the next step; export it if its probe is the best yet."""
        collapsed = None
        if self.watch is not None:
            backbone = self.objective.exported
            # Nothing has been learned before the first step.
            found = self.watch.look(backbone) if self.done else self.watch.untrained
            self.log(self.done, found)
            if self.watch.improved(found) and self.done:
                self.export(self, "best_probe")
            try:
                self._warn(self.monitors.check_embeddings(self.done, found, self.watch.untrained))
            except Collapsed as error:
                collapsed = error
        raise_on_all(self.fabric, collapsed)

    def _warn(self, warnings: Sequence[str]) -> None:
        for line in warnings:
            self.run.tell(f"warning   {line}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers of a step to metrics.jsonl and to the trackers."""
        self.run.log(step=step, **values)
        for tracker in self.trackers:
            tracker.log(step, values)

    def checkpoint(self) -> None:
        """Write what a resume needs; ranks together, rank 0 writes."""
        state = self.stream.state(self.done)
        attempts: dict[tuple[int, int], int] = {}  # each rank knows of its own faults
        for rank in gather_objects(self.fabric, state["faults"]):
            for epoch, entry, n in rank:
                attempts[epoch, entry] = max(n, attempts.get((epoch, entry), 0))
        state["faults"] = [[*key, n] for key, n in sorted(attempts.items())]

        def write() -> None:
            assert self.watch is not None  # rank 0 has it
            told = {
                "step": self.done,
                "seconds": self.seconds,
                "stream": state,
                "n_faults": self.n_faults,
                "monitors": self.monitors.state(),
                "probe": str(self.config.probe),
                "best_probe": self.watch.best_probe,
            }
            network = dataclasses.asdict(self.objective.exported.config)
            path = self.run.path / CHECKPOINT
            save_state(path, self.objective, self.optimizer, told, network)

        on_rank_0(self.fabric, write)

    def draw(self, name: str = "progress.png") -> None:
        """Draw the curves anew."""
        metrics = self.run.path / "metrics.jsonl"
        if self.fabric.is_global_zero and metrics.exists():
            path = self.run.save_figure(name, training_curves(metrics))
            for tracker in self.trackers:
                tracker.figure(self.done, "progress", path)

    def list_faults(self, *, together: bool = False) -> None:
        """Write down the regions that could not be read since the last time.

        Parameters
        ----------
        together
            All ranks call this now: those of all are listed.
        """
        mine = self.stream.faults[self.listed :]
        self.listed += len(mine)
        ranks = gather_objects(self.fabric, mine) if together else [mine]
        for fault in (fault for rank in ranks for fault in rank):
            where = f"{fault.brain} at z y x {list(fault.start)}"
            self.run.tell(f"fault     {where}, another region drawn instead: {fault.reason}")
            self.run.append("faults.jsonl", {"step": self.done, **dataclasses.asdict(fault)})
            self.n_faults += 1


def compile_networks(objective: Objective) -> None:
    """Compile the networks alone: augmentation and losses are of many shapes."""
    for module in objective.modules():
        if isinstance(module, Vit3d):
            module.compile()


def _timed(batches: Iterator[Batch]) -> Iterator[tuple[float, Batch]]:
    """Pair each batch with the seconds that it was waited for."""
    while True:
        start = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            return
        yield time.monotonic() - start, batch
