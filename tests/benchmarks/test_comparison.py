from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.comparison import MAKE, PLANS, main
from finetune.comparing.plan import read_plan

ROOT = Path(__file__).parents[2]
REFERENCES = {  # of plans that pretrain nothing
    **dict.fromkeys(("cfos_own", "cfos_transfer"), "zoo (nano), frozen"),
}


@pytest.mark.parametrize("name", MAKE)
def test_plans_are_understood(name: str) -> None:
    plan = read_plan(PLANS / f"{name}.yaml")
    assert {"contrast", "density", "forest"} <= {contender.name for contender in plan.contenders}
    assert plan.reference == REFERENCES.get(name, "pretrained, frozen")


def test_help_answers_without_torch() -> None:
    code = (
        "import sys; from benchmarks.comparison import main\n"
        "try: main(['--help'])\nexcept SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'sklearn', 'zarr'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--folder" in done.stdout


@pytest.mark.slow
def test_brains_are_made_and_flags_go_on_to_the_command(simulated, tmp_path: Path, capfd) -> None:
    for number in (1, 2, 3):  # what is there is not made again
        shutil.copytree(simulated(0).folder, tmp_path / f"usual_{number}")
    words = ["small", "--folder", str(tmp_path), "--contenders", "nobody", "--resume"]
    assert main(words) == 2
    assert "error: no contender 'nobody' in" in capfd.readouterr().err
    labelled = yaml.safe_load((tmp_path / "labelled.yaml").read_text())
    assert [brain["name"] for brain in labelled] == ["usual 1", "usual 2", "usual 3"]
    assert yaml.safe_load((tmp_path / "usual.yaml").read_text()) == labelled


@pytest.mark.slow
def test_blocks_are_named_with_their_labels(real_data: Path, tmp_path: Path, capfd) -> None:
    del real_data
    assert main(["cfos", "--folder", str(tmp_path), "--contenders", "nobody"]) == 2
    assert "no contender 'nobody'" in capfd.readouterr().err
    labelled = yaml.safe_load((tmp_path / "labelled.yaml").read_text())
    assert [brain["name"] for brain in labelled] == ["695", "753", "969"]
    assert len((tmp_path / "opened_969.jsonl").read_text().splitlines()) == 1
    seen = {name: yaml.safe_load((tmp_path / f"{name}.yaml").read_text()) for name in "AB"}
    names = {name: {brain["name"] for brain in brains} for name, brains in seen.items()}
    assert {"695", "753"} <= names["A"]
    assert names["A"] & {"969"} == names["B"] & {"695", "753"} == set()
