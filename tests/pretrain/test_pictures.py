from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from cubeclf_core.backbones import build_backbone
from cubeclf_core.errors import VolumeTooSmall
from cubeclf_core.normalise import normalise
from cubeclf_core.tissue import survey
from cubeclf_core.vit import Vit3d, Vit3dConfig
from cubeclf_core.volumes import ArraySource, Volume
from pretrain.pictures import MOST_CUBOIDS, principal_components, token_components

CONFIG = Vit3dConfig(size="nano", channels=1, patch_um=(20.0, 10.0, 10.0))


def network(channels: int = 1) -> Vit3d:
    return build_backbone(
        Vit3dConfig(size="nano", channels=channels, patch_um=CONFIG.patch_um), 0
    ).eval()


def volume(voxels: Any, size: tuple[float, float, float] = (5.0, 1.0, 1.0), n: int = 1) -> Volume:
    return Volume("brain", (ArraySource(np.asarray(voxels, np.uint16)),) * n, size)


def shown(figure: Figure) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], list[float]]:
    """The section, the map of tokens, and the extent that both have."""
    (section,), (tokens,) = (axes.get_images() for axes in figure.axes)
    assert list(section.get_extent()) == list(tokens.get_extent())
    return (
        np.asarray(section.get_array()),
        np.asarray(tokens.get_array()),
        [float(v) for v in section.get_extent()],
    )


def noise(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(100, 200, shape)


def test_tiles_cover_what_there_is() -> None:
    brain = volume(noise(25, 130, 220))
    section, tokens, extent = shown(token_components(network(), brain, survey(brain, 1)))
    assert section.shape == (100, 200)  # whole cuboids
    assert tokens.shape == (10, 20, 3)
    assert extent == [0, 200, 100, 0]


def test_the_section_is_cut_from_the_volume_as_it_is() -> None:
    voxels = noise(20, 50, 50)
    brain = volume(voxels)
    section, _, _ = shown(token_components(network(), brain, survey(brain, 1)))
    plane = CONFIG.grid[0] // 2 * CONFIG.patch_shape[0] + CONFIG.patch_shape[0] // 2
    np.testing.assert_array_equal(section, voxels[plane])


def test_tokens_are_those_of_the_backbone_in_their_places() -> None:
    voxels, net = noise(20, 100, 150), network()
    brain = volume(voxels)
    _, tokens, _ = shown(token_components(net, brain, survey(brain, 1)))
    rows = []
    for y in (0, 50):
        row = []
        for x in (0, 50, 100):
            cuboid = torch.tensor(voxels[None, None, :, y : y + 50, x : x + 50]).float()
            with torch.no_grad():
                patches = net(normalise(cuboid))[0, -CONFIG.grid[0] * 25 :]
            row.append(patches.unflatten(0, CONFIG.grid)[CONFIG.grid[0] // 2])
        rows.append(torch.cat(row, dim=1))
    whole = torch.cat(rows, dim=0)
    flat = (whole.flatten(0, 1) - whole.flatten(0, 1).mean(0)).double()
    left = torch.linalg.svd(flat, full_matrices=False)[0][:, :3].numpy()
    drawn = tokens.reshape(-1, 3)
    inside = (drawn > 0) & (drawn < 1)  # colours are cut off at the ends
    for i in range(3):
        where = inside[:, i]
        assert abs(np.corrcoef(left[where, i], drawn[where, i])[0, 1]) > 0.999


@pytest.mark.parametrize("channels", [1, 2])
def test_a_brain_with_another_voxel_size_and_too_few_channels(channels: int) -> None:
    brain = volume(noise(20, 40, 40), (6.0, 1.62, 1.62))
    section, tokens, _ = shown(token_components(network(channels), brain, survey(brain, 1)))
    assert section.shape == (50, 50)
    assert tokens.shape == (5, 5, 3)
    assert tokens.std() > 0


SMALL = Vit3dConfig(size="nano", channels=1, cuboid_shape=(4, 20, 20), patch_um=(20.0, 10.0, 10.0))


@settings(max_examples=4)
@given(y=st.integers(0, 60), x=st.integers(0, 60), z=st.integers(0, 20))
def test_the_section_lies_in_tissue(z: int, y: int, x: int) -> None:
    random = np.random.default_rng(z + y + x)
    voxels = random.integers(10, 13, (40, 160, 160))
    voxels[z : z + 20, y : y + 100, x : x + 100] += random.integers(2000, 4000, (20, 100, 100))
    brain = volume(voxels, (5.0, 6.0, 6.0))  # 600 µm of tissue in a bath
    seen = survey(brain, 1)
    assert seen.mask.mean() < 0.3
    section, _, _ = shown(token_components(build_backbone(SMALL, 0), brain, seen))
    assert (section > 1000).mean() > 0.9


def test_a_large_section_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    net = build_backbone(SMALL, 0)
    forward = net.forward
    monkeypatch.setattr(net, "forward", lambda x: encoded.append(len(x)) or forward(x))
    brain = volume(noise(6, 700, 1000))
    section, tokens, _ = shown(token_components(net, brain, survey(brain, 1)))
    assert 100 < sum(encoded) <= MOST_CUBOIDS
    assert section.shape == tuple(10 * n for n in tokens.shape[:2])


def test_what_is_too_small_is_said() -> None:
    brain = volume(noise(20, 49, 80))
    with pytest.raises(VolumeTooSmall):
        token_components(network(), brain, survey(brain, 1))


def test_the_level_that_fits_is_read_and_the_backbone_left_as_it_was() -> None:
    voxels = noise(40, 200, 200)
    fitting = volume(voxels[::2, ::2, ::2])
    fine = Volume("fine", volume(voxels).channels, (2.5, 0.5, 0.5), (fitting,))
    seen, net = survey(fine, 1), network()
    first, second = (
        shown(token_components(net.train(training), fine, seen)) for training in (False, True)
    )
    assert net.training
    np.testing.assert_array_equal(first[1], second[1])
    plane = CONFIG.grid[0] // 2 * CONFIG.patch_shape[0] + CONFIG.patch_shape[0] // 2
    np.testing.assert_array_equal(first[0], voxels[2 * plane, ::2, ::2])


@settings(max_examples=20)
@given(rows=st.integers(1, 5), columns=st.integers(1, 5), rank=st.integers(0, 4))
def test_components_explain_what_there_is(rows: int, columns: int, rank: int) -> None:
    random = torch.Generator().manual_seed(rows + 7 * columns + 31 * rank)
    tokens = torch.randn(rows, columns, 2, 3, rank, generator=random)
    tokens = tokens @ torch.randn(rank, 8, generator=random)
    components, explained = principal_components(tokens)
    assert components.shape == (rows * 2, columns * 3, 3)
    assert sorted(explained, reverse=True) == pytest.approx(explained)
    assert sum(explained) <= 1 + 1e-6
    if 0 < rank <= 3:
        assert sum(explained) == pytest.approx(1.0)
    spread = components.flatten(0, 1).square().sum(0)
    assert sorted(spread.tolist(), reverse=True) == pytest.approx(spread.tolist(), abs=1e-6)
    flipped, _ = principal_components(-tokens)
    torch.testing.assert_close(flipped.abs(), components.abs(), atol=1e-3, rtol=1e-3)


def test_what_all_cuboids_have_in_common_is_no_content() -> None:
    place = torch.randn(5, 5, 16, generator=torch.Generator().manual_seed(0))
    content = 0.1 * torch.randn(4, 4, 5, 5, 16, generator=torch.Generator().manual_seed(1))
    with_place, _ = principal_components(content + 10 * place)
    without, _ = principal_components(content)
    torch.testing.assert_close(with_place, without, atol=1e-4, rtol=1e-4)
    few, _ = principal_components((content + 10 * place)[:3, :3])
    assert few.std() > 10 * with_place.std()  # of few cuboids, nothing is taken away
