"""All labelled cuboids of a comparison, in files that every process looks at and none copies."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from cubeclf_core.axes import Size3
from cubeclf_core.files import mark, replacing
from cubeclf_core.locations import on_disk
from cubeclf_core.network_configs import BackboneConfig
from finetune.labels import Labelled, classes_of, group_of
from finetune.sources import Sources, reach_um, read_sources

_CUBOIDS, _PLACES, _WORDS = "cuboids.npy", "places.npz", "words.json"


@dataclass(frozen=True)
class Stock:
    """Labels, and what is known of them.

    Attributes
    ----------
    labels
        Each once.
    reach
        z y x in µm, from where on two cuboids share no voxel.
    voxel_size_um
        z y x, of the cuboids.
    digest
        Another for other labels, voxels or places.
    remarks
        What a report should say of them.
    """

    labels: Labelled
    reach: Size3
    voxel_size_um: Size3
    digest: str
    remarks: list[str]


def places(sources: Sources) -> Labelled:
    """Labels as they are found, without reading a voxel: their cuboids are empty."""
    names, volumes, labels, positions, voxels = [], [], [], [], []
    for brain in sources.brains:
        assert brain.cells is not None
        n = len(brain.cells)
        names += [group_of(brain)] * n
        volumes += [brain.signal] * n
        labels += classes_of(brain.cells.types, {}).tolist()
        positions += brain.cells.positions.tolist()
        voxels += [list(brain.volume.voxel_size_um)] * n
    for cube in sources.cubes:
        names.append(cube.group)
        volumes.append(cube.group)
        labels.append(cube.label)
        positions.append(list(cube.position or (np.nan,) * 3))
        voxels.append(list(cube.voxel_size_um))
    return Labelled(
        torch.zeros(len(labels), 0, 0, 0, 0),
        np.array(labels, np.int64),
        names,
        volumes,
        np.array(positions, np.float64).reshape(-1, 3),
        np.array(voxels, np.float64).reshape(-1, 3),
        names,
    )


def fill(folder: Path, sources: Sources, channels: int, network: BackboneConfig) -> Path:
    """Read all labels, unless they have been read before, and give the folder of their files.

    Parameters
    ----------
    folder
        To keep them in, with those of other plans.
    sources
        The labels.
    channels
        Of their cuboids.
    network
        What the cuboids are for.

    Raises
    ------
    InputError
        If labels cannot be used.
    """
    taken = (network.cuboid_shape, network.voxel_size_um, channels, version("cubeclf"))
    told = hashlib.sha256(repr(taken).encode())
    for brain in sources.brains:
        assert brain.cells is not None
        assert brain.at is not None
        files = on_disk(brain.at.signal, brain.at.background)
        changed = [file.stat().st_mtime_ns for file in files]
        told.update(repr((brain.group, brain.at.from_anywhere(), changed)).encode())
        told.update(brain.cells.positions.tobytes() + classes_of(brain.cells.types, {}).tobytes())
    for cube in sources.cubes:
        told.update(repr((cube, [path.stat().st_mtime_ns for path in cube.paths])).encode())
    kept = folder / told.hexdigest()[:16]
    if kept.exists():
        return kept
    data, remarks = read_sources(sources, dataclasses.replace(network, channels=channels))
    with replacing(kept) as made:
        made.mkdir()
        mark(made)
        cuboids = data.cuboids.numpy()
        np.save(made / _CUBOIDS, cuboids)
        np.savez(
            made / _PLACES,
            labels=data.labels,
            positions=data.positions,
            voxels_um=data.voxels_um,
        )
        digest = hashlib.sha256(signature(cuboids).encode())
        for part in (data.labels, data.positions, data.voxels_um):
            digest.update(np.ascontiguousarray(part).data)
        digest.update(json.dumps(data.brains).encode())
        words = {
            "brains": data.brains,
            "volumes": data.volumes,
            "sources": data.sources,
            "reach_um": list(reach_um(sources, network)),
            "voxel_size_um": list(network.voxel_size_um),
            "digest": digest.hexdigest(),
            "remarks": remarks,
        }
        (made / _WORDS).write_text(json.dumps(words), encoding="utf-8")
    return kept


def signature(cuboids: npt.NDArray[np.float32]) -> str:
    """Tell what cuboids show, alike on all machines, whose resampling rounds in its own ways."""
    parts = [str(cuboids.shape)]
    for cuboid in cuboids:
        for channel in cuboid:
            mean, deviation = channel.mean(dtype=np.float64), channel.std(dtype=np.float64)
            parts.append(f"{mean:.3g} {deviation:.3g}")
    return " ".join(parts)


def look(folder: Path) -> Stock:
    """Open what `fill` has written; cuboids stay on the disk until they are asked for."""
    words = json.loads((folder / _WORDS).read_text(encoding="utf-8"))
    # Copied where it is written to, which nobody does: torch warns of what it may not write.
    cuboids = torch.from_numpy(np.load(folder / _CUBOIDS, mmap_mode="c"))
    with np.load(folder / _PLACES) as places:
        labels = Labelled(
            cuboids,
            places["labels"],
            words["brains"],
            words["volumes"],
            places["positions"],
            places["voxels_um"],
            words["sources"],
        )
    reach, size = (tuple(words[key]) for key in ("reach_um", "voxel_size_um"))
    return Stock(labels, reach, size, words["digest"], words["remarks"])
