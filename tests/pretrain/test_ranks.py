"""Two processes with half the batch each follow one with all of it, for every objective."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cubeclf_core.config import AugmentConfig
from cubeclf_core.draws import Draws
from pretrain.objectives import OBJECTIVES

CASES = {
    **{name: (name, {}) for name in OBJECTIVES},
    "sinkhorn": ("dinov2", {"centring": "sinkhorn"}),
    "class": ("dino", {"features": "class"}),
}
BATCH, STEPS = 8, 3


def train(objective, counts, case: str, rank: int, ranks: int) -> tuple[list[float], dict]:
    """Take steps with a rank's share of the batch; the losses, and the state at the end."""
    name, settings = CASES[case]
    augment = AugmentConfig(drop_background=0.5, surroundings=0.5)
    model = objective(name, augment=augment, **settings)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.05, momentum=0.9)
    share = BATCH // ranks
    own = slice(rank * share, (rank + 1) * share)
    losses = []
    for step in range(STEPS):
        cuboids = counts(BATCH, model.canvas_shape, seed=step)[own]
        loss, told = model(cuboids, Draws(0, step, range(BATCH)[own]), step / STEPS)
        optimizer.zero_grad()
        loss.backward()
        numbers = [loss.detach(), *(value.mean() for value in told.values())]
        if ranks > 1:
            for shared in [*numbers, *(p.grad for p in trained)]:
                dist.all_reduce(shared)
                shared /= ranks
        model.before_update(step / STEPS)
        optimizer.step()
        model.after_update(step / STEPS)
        losses.append(float(numbers[0]))
    return losses, model.state_dict()


def train_together(objective, counts, rank: int, folder: Path) -> dict:
    """Train every case as one of two processes."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=300),
    )
    try:
        return {case: train(objective, counts, case, rank, 2) for case in CASES}
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(objective, counts, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of two processes has in the end; this one is the first, to save an import."""
    folder = tmp_path_factory.mktemp("ranks")
    second = subprocess.Popen([sys.executable, __file__, str(folder)])
    try:
        first = train_together(objective, counts, 0, folder)
        assert second.wait(timeout=60) == 0
    finally:
        second.kill()
    return [first, torch.load(folder / "second.pt")]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_follow_one(two_processes, objective, counts, case: str) -> None:
    losses, expected = train(objective, counts, case, rank=0, ranks=1)
    assert len(set(losses)) == STEPS
    for found_losses, found in (process[case] for process in two_processes):
        assert found_losses == pytest.approx(losses, rel=1e-5)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5, msg=key)


if __name__ == "__main__":
    from conftest import make_counts, make_objective  # beside this file, which is run as a program

    path = Path(sys.argv[1])
    torch.set_num_threads(1)
    torch.save(train_together(make_objective, make_counts, 1, path), path / "second.pt")
