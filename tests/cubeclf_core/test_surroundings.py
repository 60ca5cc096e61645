from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from cubeclf_core.draws import Draws
from cubeclf_core.surroundings import swap_surroundings

SIZE = (5.0, 1.0, 1.0)


def swap(
    cuboids: torch.Tensor, items: range, probability: float = 1.0, view: int = 0
) -> torch.Tensor:
    return swap_surroundings(
        cuboids,
        Draws(0, 1, items),
        probability=probability,
        radius_um=(10.0, 12.0),
        voxel_size_um=SIZE,
        view=view,
    )


def plain(n: int, shape=(10, 40, 40)) -> torch.Tensor:
    """Each cuboid of one value, its number."""
    return torch.arange(n).float().view(n, 1, 1, 1, 1).expand(n, 2, *shape).clone()


@given(st.integers(1, 12))
def test_the_middle_stays_and_the_rest_is_of_another_in_the_group(n: int) -> None:
    swapped = swap(plain(n), range(n))
    middle, corner = swapped[:, :, 5, 20, 20], swapped[:, :, 0, 0, 0]
    own = torch.arange(n).float()[:, None].expand(n, 2)
    assert torch.allclose(middle, own, atol=0.3)
    if n % 2:
        assert torch.equal(swapped, plain(n))
        return
    assert ((corner.round() - own).abs() >= 1).all()
    assert torch.equal(corner.round() // (4 if n % 4 == 0 else 2), own // (4 if n % 4 == 0 else 2))
    assert torch.equal(corner[:, 0], corner[:, 1]), "both channels are of one cuboid"


def test_views_of_a_cuboid_get_the_surroundings_of_different_ones() -> None:
    corners = [swap(plain(8), range(8), view=v)[:, 0, 0, 0, 0].round() for v in range(3)]
    for own, others in enumerate(torch.stack(corners).T.tolist()):
        group = own // 4 * 4
        assert sorted([own, *others]) == [group, group + 1, group + 2, group + 3]


def test_nothing_happens_without_probability_and_to_some_with_half() -> None:
    x = plain(64, (4, 20, 20))
    assert torch.equal(swap(x, range(64), 0.0), x)
    changed = (swap(x, range(64), 0.5) != x).flatten(1).any(1).sum()
    assert 16 < changed < 48


def test_a_rank_swaps_what_one_process_would() -> None:
    x = torch.randn(8, 1, 10, 40, 40, generator=torch.Generator().manual_seed(0))
    whole = swap(x, range(8))
    assert torch.equal(whole[4:], swap(x[4:], range(4, 8)))
    assert not torch.equal(whole, x)
