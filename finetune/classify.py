"""The run of `cubeclf-classify`: candidates of a brain in, cells with probabilities out."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cubeclf_core.brains import check_inside
from cubeclf_core.cells import CELL, NO_CELL, Cells, read_cells, write_cells
from cubeclf_core.classifier import load_classifier
from cubeclf_core.console import progress, say
from cubeclf_core.files import check_output, mark, replacing
from cubeclf_core.geometry import source_shape
from cubeclf_core.plots import classified_candidates
from cubeclf_core.volumes import Volume
from finetune.config import ClassifyConfig
from finetune.opening import open_brain

_PROJECTED_PLANES = 64  # read for the picture at most, evenly spaced


def classify(config: ClassifyConfig) -> None:
    """Score all candidates and write points, table and picture, all of them or none.

    Raises
    ------
    InputError
        If the brain, the classifier or the candidates cannot be used.
    """
    cells = read_cells(config.cells)
    brain = open_brain(config.brain, config.background, config.voxel_size_um)
    inputs = [*brain.paths, config.cells, config.classifier]
    check_output(config.out, overwrite=config.overwrite, inputs=inputs)
    volume = brain.volume
    check_inside(cells, volume, config.cells)
    classifier = load_classifier(config.classifier)
    source_shape(classifier.config.cuboid_shape, classifier.config.voxel_size_um, volume)

    probability = np.full(len(cells), np.nan)
    padded = np.zeros(len(cells), bool)
    with progress("classifying", len(cells), unit="candidates") as advance:
        for part in classifier.classify(volume, cells):
            probability[part.index] = part.probability
            padded[part.index] = part.padded
            advance(len(part.index))
    assert np.isfinite(probability).all()

    threshold = classifier.threshold if config.threshold is None else config.threshold
    accepted = probability >= threshold
    types = np.where(accepted, CELL, NO_CELL)
    with replacing(config.out) as out:
        (out / "figures").mkdir(parents=True)
        mark(out)
        write_cells(out / "points" / "cells.xml", cells)
        write_cells(out / "points" / "cell_classification.xml", Cells(cells.positions, types))
        _write_table(out / "candidates.csv", cells, probability, types, padded)
        figure = classified_candidates(
            _projection(volume),
            (cells.positions + 0.5) / np.array(volume.shape),
            accepted,
            probability,
            threshold,
        )
        figure.savefig(out / "figures" / "classified.png", dpi=120)
    at_border = int(padded.sum())
    say(f"{int(accepted.sum())} cells among {len(cells)} candidates, {at_border} at the border")
    say(f"points      {config.out / 'points' / 'cell_classification.xml'}")
    say(f"table       {config.out / 'candidates.csv'}")
    say(f"picture     {config.out / 'figures' / 'classified.png'}")


def _write_table(
    path: Path,
    cells: Cells,
    probability: npt.NDArray[np.float64],
    types: npt.NDArray[np.int64],
    padded: npt.NDArray[np.bool_],
) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["z", "y", "x", "type_in", "probability", "type", "padded"])
        for row in zip(
            cells.positions.tolist(), cells.types, probability, types, padded, strict=True
        ):
            position, before, p, after, at_border = row
            where = [f"{value:g}" for value in position]
            table.writerow([*where, before, f"{p:.6f}", after, int(at_border)])


def _projection(volume: Volume, side: int = 800) -> npt.NDArray[np.generic]:
    """Maximum projection of the signal along z, from evenly spaced planes, at most `side` wide."""
    depth, height, width = volume.shape
    step = max(1, max(height, width) // side)
    planes = np.unique(np.linspace(0, depth - 1, min(depth, _PROJECTED_PLANES)).astype(int))
    projection: npt.NDArray[np.generic] | None = None
    for z in planes.tolist():
        plane = volume.read((z, 0, 0), (z + 1, height, width), 1)[0, 0, ::step, ::step]
        projection = plane if projection is None else np.maximum(projection, plane)
    assert projection is not None
    return projection
