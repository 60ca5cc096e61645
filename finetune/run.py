"""The run of `cubeclf-finetune`: backbone and labels in, classifier and an account of it out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cubeclf_core.backbones import load_backbone
from cubeclf_core.brains import Brain, load_brains
from cubeclf_core.classifier import Classifier, save_classifier
from cubeclf_core.errors import CellsError, InputError
from cubeclf_core.geometry import source_shape
from cubeclf_core.metrics import classification_metrics
from cubeclf_core.plots import precision_recall
from cubeclf_core.rules import contrast, density
from cubeclf_core.runs import RunFolder, refuse_new_run
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
    _check(config)
    refuse_new_run(config.out, overwrite=config.overwrite)
    backbone, origin = load_backbone(config.backbone, channels=config.channels, seed=config.seed)
    test_brains = _labelled_brains(config.test, config) if config.test else []
    for brain in test_brains:  # found out now, not after training
        source_shape(backbone.config.cuboid_shape, backbone.config.voxel_size_um, brain.volume)
    data = _training_data(config, backbone.config)
    run = RunFolder(config.out, config, overwrite=config.overwrite)
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
    tested = {brain.name: _test(classifier, brain, run) for brain in test_brains}
    run.write_json("metrics.json", {"labels": training["labels"], "test": tested})
    run.tell(f"classifier  {run.exported / 'classifier.safetensors'}")


def _test(classifier: Classifier, brain: Brain, run: RunFolder) -> dict[str, Any]:
    """Score a brain that training has not seen, beside the simple rules."""
    data = read_labelled(brain, classifier.backbone.config)
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


def _training_data(config: FinetuneConfig, network: Vit3dConfig) -> Labelled:
    parts: list[Labelled] = []
    if config.brains:
        brains = _labelled_brains(config.brains, config)
        parts += [read_labelled(brain, network) for brain in brains]
    if config.cubes:
        parts.append(read_cubes(config.cubes, network))
    data = join(parts)
    check_both_classes(data.labels, str(config.brains or config.cubes))
    return (
        data
        if config.labels is None
        else data.subset(draw(data.labels, config.labels, config.seed))
    )


def _labelled_brains(file: Path, config: FinetuneConfig) -> Sequence[Brain]:
    """Load a brains file and check that its labels can be used before anything is computed."""
    brains = load_brains([file], voxel_size_um=config.voxel_size_um)
    for brain in brains:
        if brain.cells is None:
            raise CellsError(f"{file}: brain {brain.name} has no cells; add a `cells` entry")
    labels = np.concatenate([brain.cells.labels for brain in brains if brain.cells])
    check_both_classes(labels, str(file))
    return brains


def _check(config: FinetuneConfig) -> None:
    if not config.brains and not config.cubes:
        raise InputError("no labels: give --brains FILE, --cubes FILE, or both")
    if config.labels is not None and config.labels < 2:
        raise InputError(f"--labels is {config.labels}, expected at least 2, one of each class")
    if config.steps < 1 or config.batch_size < 2:
        raise InputError("expected --steps of at least 1 and a --batch-size of at least 2")
