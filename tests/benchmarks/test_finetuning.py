from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.finetuning import main
from benchmarks.learning.blocks import SEEN, Block
from benchmarks.learning.config import DEFAULT
from benchmarks.learning.grid import METHOD, Cell, summarise
from benchmarks.learning.protocols import make_tasks
from benchmarks.learning.trainings import network_of, settings_of
from cubeclf_core.backbones import build_backbone, save_backbone

ROOT = Path(__file__).parents[2]


def random_blocks(n: int = 300) -> dict[str, Block]:
    made = {}
    for name in ("695", "753", "969"):
        random = np.random.default_rng(int(name))
        positions = random.uniform(0, 200, (n, 3))
        labels = (random.random(n) < 0.3).astype(np.int64)
        made[name] = Block(name, positions, labels, torch.zeros(n, 1, 1, 1, 1), np.zeros(n))
    return made


def test_budgets_of_transfer_are_drawn_from_the_other_blocks_together() -> None:
    tasks = make_tasks(random_blocks(), labels=50, draws=3, transfer=20)
    transfer = [task for task in tasks if task.protocol == "transfer"]
    assert len(transfer) == 9
    for task in transfer:
        assert task.block not in task.learn
        assert sum(map(len, task.learn.values())) == 20
        for index in task.learn.values():
            assert len(set(index.tolist())) == len(index)
    first = [tuple(t.learn["695"]) for t in transfer if t.block == "753" and "695" in t.learn]
    assert len(set(first)) == 3
    again = make_tasks(random_blocks(), labels=50, draws=1, transfer=20)
    (same,) = (t for t in again if t.protocol == "transfer" and t.block == "753")
    assert tuple(same.learn["695"]) == first[0]


def test_summary_averages_draws_then_blocks_then_seeds() -> None:
    def cell(seed: int, block: str, auc: float) -> Cell:
        return Cell("frozen", seed, "own", 20, block, seed, auc, auc - 0.5, 2.0, 1.5)

    found = summarise([cell(0, "695", 0.6), cell(0, "753", 0.8), cell(1, "695", 0.9)])
    assert found["own.20.frozen.auc"] == pytest.approx(0.8)
    assert found["own.20.frozen.auc.min"] == pytest.approx(0.7)
    assert found["own.20.frozen.auc.max"] == pytest.approx(0.9)
    assert found["own.20.frozen.695.auc"] == pytest.approx(0.75)
    assert found["frozen.seconds"] == 2
    assert found["frozen.memory_gb"] == 1.5


def test_help_answers_without_torch() -> None:
    code = (
        "import sys; from benchmarks.finetuning import main\n"
        "try: main(['--help'])\nexcept SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'sklearn', 'zarr'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--transfer" in done.stdout


@pytest.mark.slow
def test_grid_is_measured_once_on_real_blocks(real_data: Path, tmp_path: Path) -> None:
    """With random weights for the pretrained backbones."""
    network = network_of(settings_of(METHOD, DEFAULT))
    for seen in SEEN:
        folder = tmp_path / "runs" / f"{METHOD}-{seen}-0" / "exported"
        save_backbone(folder / "backbone.safetensors", build_backbone(network, 3), {})
    words = [str(tmp_path), "--blocks", "695", "753", "--own", "20", "--transfer", "20"]
    words += ["--contenders", "frozen", "contrast", "--seeds", "1"]
    files = ["--json", str(tmp_path / "f.json"), "--plot", str(tmp_path / "f.png")]
    assert main([*words, *files]) == 0
    figures = json.loads((tmp_path / "f.json").read_text("utf-8"))
    for row in ("own.20", "transfer.20"):
        assert figures[f"{row}.contrast.auc"] > 0.85
        assert 0.5 < figures[f"{row}.frozen.auc"] < 1
    assert figures["opened_969"] == 0
    lines = {path: path.read_text("utf-8") for path in (tmp_path / "finetuning").glob("*.jsonl")}
    assert {path.stem for path in lines} == {"frozen-0", "contrast-0"}
    assert all(len(text.splitlines()) == 4 for text in lines.values())
    torn = tmp_path / "finetuning" / "contrast-0.jsonl"
    torn.write_text("".join(lines[torn].splitlines(keepends=True)[:3]) + '{"contender"')
    assert main([*words, *files]) == 0
    again = json.loads((tmp_path / "f.json").read_text("utf-8"))
    for row in ("own.20", "transfer.20"):
        assert again[f"{row}.contrast.auc"] == figures[f"{row}.contrast.auc"]
    assert len(torn.read_text("utf-8").splitlines()) == 4
    assert main([*words, *files, "--show", "--contenders", "frozen", "contrast", "lora"]) == 0
    shown = json.loads((tmp_path / "f.json").read_text("utf-8"))
    assert {**shown, "seconds": 0} == {**again, "seconds": 0}
    assert not [path for path in (tmp_path / "finetuning").iterdir() if "lora" in path.name]
