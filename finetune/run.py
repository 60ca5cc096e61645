"""The run of `cubeclf-finetune`: backbone and labels in, classifier and an account of it out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cubeclf_core.backbones import load_backbone
from cubeclf_core.brains import Brain, load_brains
from cubeclf_core.classifier import Classifier, save_classifier
from cubeclf_core.errors import CellsError, InputError
from cubeclf_core.files import check_output
from cubeclf_core.metrics import classification_metrics
from cubeclf_core.plots import precision_recall
from cubeclf_core.rules import contrast, density
from cubeclf_core.runs import RunFolder
from cubeclf_core.vit import Vit3dConfig
from finetune.config import FinetuneConfig
from finetune.cubes import read_cubes
from finetune.labels import Labelled, check_both_classes, draw, join, read_labelled
from finetune.training import finetune_network, fit_head, predict


def finetune(config: FinetuneConfig) -> None:
    """Run one fine-tuning to its end and write the classifier.

    Raises
    ------
    InputError
        If the settings, the backbone or the labels cannot be used; nothing has been written then.
    """
    brains = _labelled_brains(config.brains, config) if config.brains else []
    test_brains = _labelled_brains(config.test, config) if config.test else []
    _check_apart(brains, test_brains)
    inputs = [path for brain in (*brains, *test_brains) for path in brain.paths]
    inputs += [path for path in (Path(config.backbone), config.cubes) if path]
    check_output(config.out, overwrite=config.overwrite, inputs=inputs)
    backbone, origin = load_backbone(config.backbone, channels=config.channels, seed=config.seed)
    data = _training_data(config, brains, backbone.config)
    test_data = [read_labelled(brain, backbone.config) for brain in test_brains]
    run = RunFolder(config.out, config)
    cells = int(data.labels.sum())
    run.tell(f"{len(data)} labels: {cells} cells, {len(data) - cells} others")

    classifier = Classifier(backbone)
    fit_head(classifier, data, config.seed)
    if not config.freeze:
        for line in finetune_network(classifier, data, config):
            run.log(**line)

    training = {
        "backbone": origin,
        "labels": {"n": len(data), "cells": cells, "sources": sorted(set(data.sources))},
        "frozen": config.freeze,
        "seed": config.seed,
    }
    save_classifier(run.exported / "classifier.safetensors", classifier, training)
    tested = {
        brain.name: _test(classifier, brain, labelled, run)
        for brain, labelled in zip(test_brains, test_data, strict=True)
    }
    run.write_json("metrics.json", {"labels": training["labels"], "test": tested})
    run.tell(f"classifier  {run.exported / 'classifier.safetensors'}")


def _test(classifier: Classifier, brain: Brain, data: Labelled, run: RunFolder) -> dict[str, Any]:
    """Score a brain that training has not seen, beside the simple rules."""
    assert brain.cells is not None
    voxel_size_um = classifier.backbone.config.voxel_size_um
    rule, contrast_score = contrast(data.cuboids[:, 0].numpy(), data.labels, voxel_size_um)
    scores = {
        "classifier": predict(classifier, data.cuboids),
        "contrast": contrast_score,
        "density": density(brain.cells.positions, brain.volume.voxel_size_um),
    }
    results = {name: classification_metrics(data.labels, score) for name, score in scores.items()}
    for name, result in results.items():
        run.tell(
            f"{brain.name}: {name:<10} AUC {result['auc']:.3f}, "
            f"average precision {result['average_precision']:.3f} "
            f"({result['average_precision_less_prevalence']:+.3f} over the share of cells)"
        )
    figure = run.save_figure(
        f"figures/precision_recall_{brain.name}.png", precision_recall(data.labels, scores)
    )
    run.tell(f"picture     {figure}")
    return {**results, "contrast_rule": rule}


def _training_data(
    config: FinetuneConfig, brains: Sequence[Brain], network: Vit3dConfig
) -> Labelled:
    """Read the labels of brains and cubes, or as many of all of them as are wanted."""
    cubes = [read_cubes(config.cubes, network)] if config.cubes else []
    by_brain = [brain.cells.labels for brain in brains if brain.cells]
    labels = np.concatenate([*by_brain, *(part.labels for part in cubes)])
    check_both_classes(labels, str(config.brains or config.cubes))
    wanted = draw(labels, len(labels) if config.labels is None else config.labels, config.seed)
    ends = np.cumsum([*map(len, by_brain), *map(len, cubes)])
    own = [part - first for part, first in zip(_split(wanted, ends), [0, *ends], strict=False)]
    parts = [
        read_labelled(brain, network, index) for brain, index in zip(brains, own, strict=False)
    ]
    parts += [part.subset(index) for part, index in zip(cubes, own[len(brains) :], strict=True)]
    return join(parts)


def _split(
    index: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> list[npt.NDArray[np.int64]]:
    """Split sorted indices at the ends of the parts that they count through."""
    return np.split(index, np.searchsorted(index, ends[:-1]))


def _check_apart(brains: Sequence[Brain], test_brains: Sequence[Brain]) -> None:
    """Refuse a test brain that is trained on."""
    seen = {brain.signal for brain in brains}
    for brain in test_brains:
        if brain.signal in seen:
            raise InputError(
                f"--test names {brain.signal}, which --brains names too; a test needs a brain "
                "that training has not seen"
            )


def _labelled_brains(file: Path, config: FinetuneConfig) -> Sequence[Brain]:
    """Load a brains file and check that its labels can be used before anything is computed."""
    brains = load_brains([file], voxel_size_um=config.voxel_size_um)
    for brain in brains:
        if brain.cells is None:
            raise CellsError(f"{file}: brain {brain.name} has no cells; add a `cells` entry")
        if file == config.test:
            check_both_classes(brain.cells.labels, f"{file}, brain {brain.name}")
    return brains
