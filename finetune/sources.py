"""All labels of a fine-tuning: brains files and training YAMLs together, each label once.

Groups of one name are one group, whichever files they are in: ``mouse 1`` of one brains file,
``mouse 1`` of another, and cubes whose `group` is ``mouse 1`` are never split apart unguarded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from cubeclf_core.axes import Size3
from cubeclf_core.brains import Brain, load_brains
from cubeclf_core.cells import Cells
from cubeclf_core.errors import CellsError, InputError
from cubeclf_core.geometry import source_shape
from cubeclf_core.network_configs import BackboneConfig
from finetune.cubes import Cube, list_cubes, read_listed
from finetune.labels import (
    Labelled,
    check_both_classes,
    classes_of,
    draw,
    group_of,
    join,
    name_cells,
    read_labelled,
)
from finetune.repeats import keep_once, pair_by_place, pair_by_voxels


@dataclass(frozen=True)
class Sources:
    """Labels that were found, and not read yet.

    Attributes
    ----------
    brains
        All have cells.
    cubes
        Of all training YAMLs.
    files
        What was given: brains files and training YAMLs.
    further
        Classes beside "no cell" and "cell"; see `finetune.labels.classes_of`.
    """

    brains: tuple[Brain, ...]
    cubes: tuple[Cube, ...]
    files: tuple[Path, ...]
    further: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file and folder of this machine that labels are read from."""
        brains = [path for brain in self.brains for path in brain.paths]
        return (*self.files, *brains, *sorted({cube.paths[0].parent for cube in self.cubes}))

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Classes, those of the brains first; shape (n,)."""
        brains = [classes_of(_cells(brain).types, self.further) for brain in self.brains]
        return np.concatenate([*brains, [cube.label for cube in self.cubes]]).astype(np.int64)


def find_labels(
    brain_files: Sequence[Path],
    cube_files: Sequence[Path] = (),
    *,
    voxel_size_um: Sequence[float] | None = None,
    further: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> Sources:
    """Find the labels of brains and cubes, and check what can be checked without reading voxels.

    Parameters
    ----------
    brain_files
        YAML brains files, whose brains need cells.
    cube_files
        cellfinder's training YAMLs.
    voxel_size_um
        z y x, of brains whose files do not say.
    further
        Classes beside "no cell" and "cell"; see `finetune.labels.classes_of`.

    Raises
    ------
    InputError
        If a file cannot be used, one volume is in two groups, or there are not two labels of each
        class.
    """
    brains = [b for file in brain_files for b in load_brains([file], voxel_size_um=voxel_size_um)]
    for brain in brains:
        if brain.cells is None:
            raise CellsError(f"brain {brain.name} has no cells; add a `cells` entry to its file")
    groups: dict[str, Brain] = {}
    for brain in brains:
        other = groups.setdefault(brain.signal, brain)
        if group_of(other) != group_of(brain):
            raise InputError(
                f"{other.name} and {brain.name} are one volume, {brain.signal}, but of the groups "
                f"{group_of(other)} and {group_of(brain)}; give them one `group`"
            )
    cubes = [cube for file in cube_files for cube in list_cubes(file)]
    files = (*brain_files, *cube_files)
    found = Sources(tuple(brains), tuple(cubes), files, further)
    check_both_classes(found.labels, ", ".join(map(str, files)))
    return found


def read_sources(
    sources: Sources, network: BackboneConfig, *, n: int | None = None, seed: int = 0
) -> tuple[Labelled, list[str]]:
    """Read labels, each once, or as many of all of them as are wanted.

    Two labels are the same if they lie less than a voxel apart in one volume, if two cubes of one
    group have one position in their names, or if their cuboids agree in every voxel of the signal.
    (The last is looked for among those that are drawn.)

    Parameters
    ----------
    sources
        What `find_labels` found.
    network
        What the cuboids are for.
    n
        Draw so many at random, in the classes' proportion; all if not given.
    seed
        Of the draw.

    Returns
    -------
    labelled : Labelled
        Brains in their order, then cubes.
    remarks : list of str
        What a report should say of them.

    Raises
    ------
    InputError
        If the same label is of different classes.
    CellsError
        If there are not two labels of each class, or a cube cannot be used.
    VolumeError
        If a volume cannot be read, or is smaller than a cuboid.
    """
    where = ", ".join(map(str, sources.files))
    labels = sources.labels
    kept, repeated = keep_once(_pair_by_place(sources), labels, _names(sources))
    remarks = _cubes_of_their_own(sources) + repeated
    check_both_classes(labels[kept], where)
    wanted = kept[draw(labels[kept], len(kept) if n is None else n, seed)]

    ends = np.cumsum([len(_cells(brain)) for brain in sources.brains])
    *of_brains, of_cubes = np.split(wanted, np.searchsorted(wanted, ends))
    starts = np.concatenate([[0], ends]).astype(np.int64)
    parts = [
        read_labelled(brain, network, index - start, sources.further)
        for brain, index, start in zip(sources.brains, of_brains, starts, strict=False)
        if len(index)
    ]
    if len(of_cubes):
        parts.append(read_listed([sources.cubes[i - starts[-1]] for i in of_cubes], network))
    data = join(parts)
    kept, more = keep_once(pair_by_voxels(data.cuboids), data.labels, data.sources)
    return (data.subset(kept) if more else data), remarks + more


def reach_um(sources: Sources, network: BackboneConfig) -> Size3:
    """Say from which distance on two cuboids share no voxel, whatever is rounded.

    Parameters
    ----------
    sources
        Where the cuboids are cut.
    network
        What they are for.

    Returns
    -------
    tuple of float
        z y x in µm: a cuboid in voxels of the volume, and two voxels, which rounding of fractions
        and mirroring at the border can take; of all volumes the largest.
    """
    shape, um = network.cuboid_shape, network.voxel_size_um
    reaches = [
        [(n + 2) * own for n, own in zip(extent, brain.volume.voxel_size_um, strict=True)]
        for brain in sources.brains
        for extent in [source_shape(shape, um, brain.volume)]
    ]
    reaches += [
        [(round(n * net / own) + 2) * own for n, net, own in zip(shape, um, voxel, strict=True)]
        for voxel in {cube.voxel_size_um for cube in sources.cubes}
    ]
    z, y, x = np.max(reaches, axis=0).tolist()
    return z, y, x


def _cells(brain: Brain) -> Cells:
    assert brain.cells is not None
    return brain.cells


def _cubes_of_their_own(sources: Sources) -> list[str]:
    """Say so if cubes are taken for those of another animal than any of the brains given."""
    groups = {group_of(brain) for brain in sources.brains}
    own = sorted({cube.group for cube in sources.cubes} - groups)
    if not groups or not own:
        return []
    return [
        f"cubes of {', '.join(own)} count as another animal than {', '.join(sorted(groups))}; if "
        "they are of one of these, give it as their `group` in the training YAML"
    ]


def _pair_by_place(sources: Sources) -> npt.NDArray[np.int64]:
    volumes = [f"brain {brain.signal}" for brain in sources.brains for _ in _cells(brain).types]
    volumes += [f"cubes {cube.group} {cube.voxel_size_um}" for cube in sources.cubes]
    nowhere = (np.nan, np.nan, np.nan)
    positions = [
        *(_cells(brain).positions for brain in sources.brains),
        np.array([cube.position or nowhere for cube in sources.cubes], np.float64).reshape(-1, 3),
    ]
    return pair_by_place(volumes, np.concatenate(positions))


def _names(sources: Sources) -> list[str]:
    cells = [name for brain in sources.brains for name in name_cells(brain, _cells(brain))]
    return cells + [cube.source for cube in sources.cubes]
