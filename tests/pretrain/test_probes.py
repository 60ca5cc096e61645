from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cubeclf_core.backbones import build_backbone
from cubeclf_core.brains import Brain
from cubeclf_core.cells import CELL, Cells
from cubeclf_core.errors import CellsError
from cubeclf_core.normalise import normalise
from cubeclf_core.sources import ArraySource
from cubeclf_core.vit import Vit3d, Vit3dConfig
from cubeclf_core.volumes import Volume
from pretrain.probes import Probe, embed, shortcuts

SMALL = Vit3dConfig(size="nano", channels=1, cuboid_shape=(8, 20, 20), patch_um=(20, 10, 10))


def nano(config: Vit3dConfig = SMALL) -> Vit3d:
    return build_backbone(config, seed=0)


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def brain(name: str, n: int = 60, shape=(20, 80, 160), bright: bool = True, seed: int = 0) -> Brain:
    """A brain of noise, in which cells, every third candidate, may be bright balls."""
    voxels = random(seed).poisson(100, shape).astype(np.uint16)
    positions = random(seed + 1).uniform(0, np.array(shape) - 1, (n, 3))
    types = np.where(np.arange(n) % 3 == 0, CELL, 1)
    for z, y, x in positions[types == CELL].round().astype(int) if bright else ():
        voxels[max(z - 1, 0) : z + 2, max(y - 3, 0) : y + 4, max(x - 3, 0) : x + 4] += 80
    volume = Volume(name, (ArraySource(voxels),), (5.0, 1.0, 1.0))
    return Brain(name, volume, Cells(positions, types), ())


def test_embed_takes_the_middle_and_leaves_the_mode() -> None:
    torch.manual_seed(0)
    backbone = nano()
    canvases = torch.rand(70, 1, 12, 30, 26) * 1000
    backbone.train()
    backbone.blocks[1].eval()
    token, pooled = embed(backbone, canvases)
    assert backbone.training
    assert [block.training for block in backbone.blocks] == [True, False, True, True]
    backbone.eval()
    with torch.no_grad():
        tokens = backbone(normalise(canvases[:, :, 2:10, 5:25, 3:23]))
        torch.testing.assert_close(token, tokens[:, 0])
        torch.testing.assert_close(pooled, backbone.pool_tokens(tokens))
    assert not pooled.requires_grad
    assert pooled.shape == (70, backbone.embedding_width)


def test_probe_finds_bright_cells_and_nothing_where_nothing_is() -> None:
    found = Probe([brain("a", 240)], SMALL).measure(nano())
    assert found["probe_linear_auc"] > 0.9
    assert found["probe_knn_auc"] > 0.75
    nothing = Probe([brain("a", 240, bright=False)], SMALL).measure(nano())
    assert all(abs(auc - 0.5) < 0.15 for auc in nothing.values())


def test_probe_is_the_same_again_and_says_how_it_splits() -> None:
    probes = [Probe([brain("a")], SMALL, limit=30, seed=seed) for seed in (0, 0, 1)]
    measured = [probe.measure(nano()) for probe in probes]
    assert measured[0] == measured[1] != measured[2]
    assert probes[0].split == "by halves of a along x"
    assert len(probes[0]) == 30


@settings(max_examples=25)
@given(
    shape=st.tuples(st.just(16), st.integers(75, 130), st.integers(75, 130)),
    y_um=st.sampled_from([1.0, 2.0, 0.7]),
    seed=st.integers(0, 99),
)
def test_halves_of_a_brain_share_no_voxel(shape, y_um: float, seed: int) -> None:
    axis = 1 if shape[1] * y_um >= shape[2] else 2
    along = np.arange(shape[axis], dtype=np.uint16).reshape((1, -1, 1) if axis == 1 else (1, 1, -1))
    volume = Volume("a", (ArraySource(np.zeros(shape, np.uint16) + along),), (5.0, y_um, 1.0))
    cells = brain("a", 300, shape=shape, bright=False, seed=seed).cells
    probe = Probe([Brain("a", volume, cells, ())], SMALL, limit=60)
    assert probe.split.endswith("along " + "zyx"[axis])
    low, high = (probe.cuboids[torch.from_numpy(probe.folds == fold)] for fold in (0, 1))
    assert low.max() < high.min()
    assert np.bincount(probe.folds).tolist() == [30, 30]


def test_several_brains_are_never_in_two_folds() -> None:
    brains = [brain(f"{i}", seed=2 * i) for i in range(7)]
    probe = Probe([*brains, unlabelled("none")], SMALL, limit=140)
    assert probe.split == "by brain, in 5 folds"
    assert np.bincount(probe.folds).tolist() == [40, 40, 20, 20, 20]
    assert probe.labels.mean() == 0.5
    own = Probe(brains[1:2], SMALL, limit=200)
    others = {
        cuboid.numpy().tobytes() for cuboid in probe.cuboids[torch.from_numpy(probe.folds != 1)]
    }
    assert others.isdisjoint(cuboid.numpy().tobytes() for cuboid in own.cuboids)


def test_a_class_with_too_few_is_made_up_by_the_other() -> None:
    one = brain("a", 120)
    rare = Cells(one.cells.positions, np.where(np.arange(120) % 10 == 0, CELL, -1))
    probe = Probe([dataclasses.replace(one, cells=rare), brain("b", 120)], SMALL, limit=120)
    first = probe.labels[probe.folds == 0]
    assert (int(first.sum()), len(first)) == (12, 60)


def test_one_channel_more_or_less_will_do() -> None:
    two = dataclasses.replace(SMALL, channels=2)
    probe = Probe([brain("a")], two, limit=20)
    assert probe.cuboids.shape == (20, 2, 8, 20, 20)
    assert set(probe.measure(nano(two))) == {"probe_knn_auc", "probe_linear_auc"}


def unlabelled(name: str) -> Brain:
    return dataclasses.replace(brain(name, 6), cells=None)


def of_type(kind: int, n: int = 60) -> Brain:
    one = brain("a", n)
    return dataclasses.replace(one, cells=Cells(one.cells.positions, np.full(n, kind)))


@pytest.mark.parametrize(
    ("brains", "expected"),
    [
        ([unlabelled("a")], "--probe needs labelled cells; give `cells` in a brains file of a"),
        (
            [of_type(2)],
            r"--probe: a half of a \(split .*\) has \d+ cells and 0 others; expected at",
        ),
        ([of_type(1), brain("b")], "--probe: a has 0 cells and 60 others; expected at least 5"),
        ([brain("b"), brain("c", 12)], "--probe: c has 4 cells and 8 others; expected at least 5"),
    ],
)
def test_labels_that_cannot_probe(brains: list[Brain], expected: str) -> None:
    with pytest.raises(CellsError, match=f"^{expected}") as found:
        Probe(brains, SMALL)
    assert "\n" not in str(found.value)


def monitored(n: int = 300, n_brains: int = 3) -> tuple[torch.Tensor, np.ndarray, dict]:
    features = torch.from_numpy(random().normal(size=(n, 300)))
    which = random(1).permutation(np.arange(n) % n_brains)
    where = {
        "depth": random(2).uniform(0, 500, n) + 1000 * which,  # brains differ in height
        "intensity": np.exp(random(3).normal(5 + which, 0.5)),  # and in gain
    }
    return features, which, where


def test_shortcuts_are_near_chance_where_features_say_nothing() -> None:
    features, which, where = monitored()
    found = shortcuts(features, which, **where)
    assert found["shortcut_brain_chance"] == pytest.approx(1 / 3)
    assert abs(found["shortcut_brain"] - 1 / 3) < 0.1
    assert abs(found["shortcut_depth"]) < 0.1
    assert abs(found["shortcut_intensity"]) < 0.1
    assert found == shortcuts(features, which, **where)


@pytest.mark.parametrize("leak", ["brain", "depth", "intensity"])
def test_each_shortcut_is_found_alone(leak: str) -> None:
    features, which, where = monitored()
    told = {"brain": which, "depth": where["depth"] % 1000, "intensity": where["intensity"]}[leak]
    told = np.log(told) - which if leak == "intensity" else told
    found = shortcuts(features + 2 * torch.from_numpy(told / told.std())[:, None], which, **where)
    chance = {"brain": 1 / 3, "depth": 0, "intensity": 0}
    for name, value in chance.items():
        assert (found[f"shortcut_{name}"] > 0.8) == (name == leak), name
        assert name == leak or abs(found[f"shortcut_{name}"] - value) < 0.1


def test_what_cannot_be_judged_is_left_out() -> None:
    features, which, where = monitored(64, 1)
    assert set(shortcuts(features, which, **where)) == {"shortcut_depth", "shortcut_intensity"}
    rare = np.arange(64) // 61  # three cuboids of another brain
    assert "shortcut_brain" not in shortcuts(features, rare, **where)
    same = {name: np.ones(64) for name in where}
    assert shortcuts(features, which, **same) == {}
