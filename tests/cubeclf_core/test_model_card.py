from __future__ import annotations

import re

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cubeclf_core.backbones import build_backbone
from cubeclf_core.brains import Brain
from cubeclf_core.model_card import model_card
from cubeclf_core.vit import Vit3d, Vit3dConfig
from cubeclf_core.volumes import ArraySource, Volume

SETTINGS = "method: dino\nsteps: 2000\nmae:\n  mask_ratio: 0.75\n"


def brain(name: str) -> Brain:
    source = ArraySource(np.zeros((30, 60, 70), np.uint16))
    return Brain(name, Volume(name, (source, source), (6.0, 1.62, 1.62)), None, ())


@pytest.fixture(scope="module")
def backbone() -> Vit3d:
    return build_backbone(Vit3dConfig(size="nano", channels=2), 0)


def table(card: str, heading: str) -> list[list[str]]:
    """Rows below the header of the first table after a heading."""
    _, _, below = f"\n{card}".partition(f"\n{heading}\n")  # a brain may be named like one
    rows = re.search(r"((?:^\|.*\|\n)+)", below, re.MULTILINE)
    assert rows
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in rows[1].splitlines()]
    assert len({len(row) for row in cells}) == 1  # else Markdown shows no table
    return [[cell.strip() for cell in row] for row in cells[2:]]


def test_the_card_tells_what_it_was_given(backbone: Vit3d, command) -> None:
    card = model_card(
        backbone,
        [brain("mouse 1"), brain("mouse 2")],
        weights="backbone.safetensors",
        settings=SETTINGS,
        training={"objective": "dino", "cuboids_seen": 128000, "wall_time_s": 3725.2},
        results={"rank_me": 61.23456, "probe_knn_auc": 0.91},
        untrained={"rank_me": 17.5},
        pictures={"curves": "progress.png"},
    )
    network = dict(table(card, "# backbone.safetensors"))
    assert network["parameters"] == f"{sum(p.numel() for p in backbone.parameters()):,}"
    assert network["channels"] == "2 (signal and background)"
    assert network["cuboid"] == "20 × 50 × 50 voxels (z y x)"
    assert network["voxel size"] == "5 × 1 × 1 µm"
    assert network["patch"] == " × ".join(f"{p:g}" for p in backbone.config.patch_um) + " µm"
    assert table(card, "## Data") == [
        [name, "30 × 60 × 70", "6 × 1.62 × 1.62", "2", "uint16"] for name in ("mouse 1", "mouse 2")
    ]
    assert dict(table(card, "## Training")) == {
        "objective": "dino",
        "cuboids seen": "128,000",
        "wall time": "1 h 2 min",
    }
    assert table(card, "## Results") == [
        ["rank_me", "61.23", "17.5"],
        ["probe_knn_auc", "0.91", ""],
    ]
    assert "![curves](progress.png)" in card
    assert "The training used mouse 1, mouse 2." in card
    use = re.search(r"```sh\n(.*)\n```", card)
    assert use
    program, *flags = use[1].split()
    assert command(program, *flags, "--print-config").code == 0
    assert flags[:2] == ["--backbone", "backbone.safetensors"]
    fenced = re.search(r"```yaml\n(.*)\n```", card, re.DOTALL)
    assert fenced
    assert yaml.safe_load(fenced[1]) == yaml.safe_load(SETTINGS)


def test_nothing_is_invented(backbone: Vit3d) -> None:
    card = model_card(
        backbone,
        [brain("one")],
        weights="best_probe.safetensors",
        settings="seed: 0\n",
        training={"steps": 3, "wall_time_s": 61},
        results={},
    )
    assert "None were measured." in card
    assert "untrained" not in card
    assert "![" not in card
    assert dict(table(card, "## Training")) == {"steps": "3", "wall time": "1 min 1 s"}


@given(name=st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20))
def test_any_name_and_setting_keeps_tables_and_fences_whole(backbone: Vit3d, name: str) -> None:
    settings = yaml.safe_dump({"name": name, "note": "```\n````"})
    card = model_card(
        backbone,
        [brain(name)],
        weights="w.safetensors",
        settings=settings,
        training={"steps": 1},
        results={"loss": 1.0},
    )
    (row,) = table(card, "## Data")
    assert row[1:] == ["30 × 60 × 70", "6 × 1.62 × 1.62", "2", "uint16"]
    fence, quoted = re.search(r"^(`{3,})yaml\n(.*)\n\1\n$", card, re.DOTALL | re.MULTILINE).groups()
    assert fence not in quoted
    assert yaml.safe_load(quoted)["name"] == name
