"""The run of `cubeclf-finetune`: backbone and labels in, classifier and an account of it out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors import SafetensorError

from cubeclf_core.brains import Brain, load_brains
from cubeclf_core.calibration import fit_temperature
from cubeclf_core.engine import make_fabric
from cubeclf_core.errors import CellsError, InputError, RunFailed
from cubeclf_core.files import check_output
from cubeclf_core.heads import CELL_CLASS
from cubeclf_core.runs import RunFolder, check_same_settings
from cubeclf_core.trained import Classifier, save_classifier
from finetune.assessment import Account, Tested, assess
from finetune.config import FinetuneConfig
from finetune.drift import Reference, make_reference
from finetune.examples import in_parts
from finetune.label_errors import label_errors
from finetune.labels import Labelled, group_of, join, read_labelled
from finetune.memory import embed, save_memory
from finetune.parts import Split
from finetune.sources import Sources, find_labels, reach_um, read_sources
from finetune.splits import folds, split
from finetune.starting import Start, load_start, untrained_classifier
from finetune.thresholds import ChosenThreshold, choose_threshold, parse_threshold
from finetune.trials import Outcome, Trials

CHECKPOINT = "checkpoints/last.safetensors"
_MAY_CHANGE = ("out", "resume", "overwrite")
_NOT_IMPROVED = "no epoch was better than the head fitted on the frozen backbone, which is kept"


def finetune(config: FinetuneConfig) -> None:
    """Run one fine-tuning to its end and write the classifier and the report.

    Raises
    ------
    InputError
        If the settings, the backbone or the labels cannot be used; nothing has been written then.
    Stopped
        If a signal asked for it; `--resume` goes on.
    RunFailed
        If the disk is full.
    """
    parse_threshold(config.threshold)  # refused before anything is read
    sources = find_labels(
        config.brains, config.cubes, voxel_size_um=config.voxel_size_um, further=config.classes
    )
    test_brains = _test_brains(config)
    _check_apart(sources, test_brains)
    resumed = config.resume and (config.out / "config.yaml").exists()
    _check_folder(config, sources, test_brains, resumed=resumed)
    start = load_start(config.backbone, channels=config.channels, seed=config.seed)
    network = start.backbone.config
    data, notes = read_sources(sources, network, n=config.labels, seed=config.seed)
    _check_classes(config, data)
    notes += _confounded(data)
    test = [read_labelled(brain, network, further=config.classes) for brain in test_brains]
    splits, how = _splits(config, data, sources, start)
    base = untrained_classifier(start, config)
    fabric = make_fabric(config.precision)
    if fabric.world_size > 1:
        raise InputError("fine-tuning runs on one device; start it without torchrun")
    run = RunFolder(config.out, config, resume=resumed)
    try:
        _introduce(run, data, [*notes, *how])
        outcome = _train(config, base, data, splits, run, fabric, resumed=resumed)
        classifier = outcome.classifier
        temperature, threshold = _calibrate(config, outcome, data)
        features = save_memory(run.exported / "labelled.safetensors", classifier, data)
        training = {
            "backbone": start.origin,
            "labels": {
                "n": len(data),
                "cells": int((data.labels == CELL_CLASS).sum()),
                "brains": data.names,
            },
            "trained": config.what,
            "epochs": outcome.epochs,
            "seed": config.seed,
            "threshold": threshold.threshold,
            "reference": _reference(outcome, data, temperature, features).to_dict(),
        }
        save_classifier(run.exported / "classifier.safetensors", classifier, training)
        account = Account(
            config=config,
            trained=_sentence(config, start, outcome),
            split="; ".join(how) or _told(splits),
            labels=data,
            suspected=_suspected(outcome, data, temperature),
            voxel_size_um=network.voxel_size_um,
            temperature=temperature,
            threshold=threshold,
            classes=classifier.head.config.classes,
            notes=notes,
        )
        assess(run, account, _tested(outcome, data, test))
    except (OSError, SafetensorError) as error:
        raise RunFailed(f"stopped: {error}; make room and go on with --resume") from error
    run.tell(f"classifier  {run.exported / 'classifier.safetensors'}")


def _check_classes(config: FinetuneConfig, data: Labelled) -> None:
    for number, name in enumerate(config.classes, 2):
        if (n := int((data.labels == number).sum())) < 2:
            raise CellsError(
                f"the class {name} has {n} of the labels that are used; expected at least two"
            )


def _confounded(data: Labelled) -> list[str]:
    """Say where what tells brains apart cannot be told from what tells classes apart."""
    classes = {name: set(data.labels[data.brain_numbers == i]) for i, name in enumerate(data.names)}
    lacking = sorted(name for name, own in classes.items() if own != set(data.labels))
    if not lacking:
        return []
    return [
        f"labels of {', '.join(lacking)} are not of every class: what sets a brain apart may pass "
        "for what sets its class apart; labels of each class in each brain help"
    ]


def _splits(
    config: FinetuneConfig, data: Labelled, sources: Sources, start: Start
) -> tuple[list[Split], list[str]]:
    """Decide what is held out; where nothing can be, say why."""
    reach = reach_um(sources, start.backbone.config)
    where = (data.labels, data.brains, data.positions_um, reach)
    if not config.parts_held_out:
        return [], ["nothing was held out, as --folds 0 asks for"]
    for k in range(config.parts_held_out, 1, -1):  # fewer, where labels are too few or too close
        try:
            return folds(*where, k=k, seed=config.seed), []
        except InputError:
            continue
    try:
        return [split(*where, seed=config.seed)], []
    except InputError as error:
        return [], [f"nothing could be held out: {error}"]


def _told(splits: Sequence[Split]) -> str:
    return f"Held out, {'in turn' if len(splits) > 1 else 'once'}: " + "; ".join(
        split.how.removeprefix("by space: held out ").removeprefix("by brain: held out ")
        for split in splits
    )


def _introduce(run: RunFolder, data: Labelled, remarks: Sequence[str]) -> None:
    cells = int((data.labels == CELL_CLASS).sum())
    run.tell(f"{len(data)} labels: {cells} cells, {len(data) - cells} others")
    for remark in remarks:
        run.tell(f"note        {remark}")


def _train(
    config: FinetuneConfig,
    base: Classifier,
    data: Labelled,
    splits: Sequence[Split],
    run: RunFolder,
    fabric: Fabric,
    *,
    resumed: bool,
) -> Outcome:
    checkpoint = run.path / CHECKPOINT
    trials = Trials(
        config=config,
        base=base,
        data=data,
        splits=splits,
        fabric=fabric,
        log=lambda told: run.log(**told),
        trim=lambda step: run.trim("metrics.jsonl", step),
        tell=run.tell,
        checkpoint=checkpoint,
    )
    going_on = resumed and checkpoint.exists()
    if not going_on:
        run.trim("metrics.jsonl", 0)
    return trials.run(resume=going_on)


def _calibrate(
    config: FinetuneConfig, outcome: Outcome, data: Labelled
) -> tuple[float | None, ChosenThreshold]:
    """Find temperature and threshold by what was held out; the temperature goes into the head."""
    rule = parse_threshold(config.threshold)
    if not len(outcome.held_out):
        fixed = rule.value if rule.kind == "fixed" else 0.5
        remark = "" if rule.kind == "fixed" else "nothing was held out to choose it by: 0.5"
        return None, ChosenThreshold(fixed, remark)
    labels = data.labels[outcome.held_out]
    temperature = fit_temperature(outcome.logits.double().numpy(), labels)
    outcome.classifier.head.temperature.fill_(temperature)
    probability = (outcome.logits.double() / temperature).softmax(1)[:, CELL_CLASS].numpy()
    return temperature, choose_threshold(rule, labels, probability)


def _reference(
    outcome: Outcome, data: Labelled, temperature: float | None, features: torch.Tensor
) -> Reference:
    """Say what the labels look like, so that a brain that looks otherwise can be told."""
    probability = (outcome.logits.double() / (temperature or 1.0)).softmax(1).numpy()
    held_out = data.labels[outcome.held_out]
    said = probability[:, CELL_CLASS] if len(held_out) else np.zeros(0)
    return make_reference(held_out, said, data.labels, data.brain_numbers, features.numpy())


def _suspected(outcome: Outcome, data: Labelled, temperature: float | None) -> tuple[Any, Any]:
    if not len(outcome.held_out):
        return np.zeros(0, np.int64), np.zeros(0)
    probability = (outcome.logits.double() / (temperature or 1.0)).softmax(1).numpy()
    index, belief = label_errors(data.labels[outcome.held_out], probability)
    return outcome.held_out[index], belief


def _tested(outcome: Outcome, data: Labelled, test: Sequence[Labelled]) -> Tested | None:
    """Score test brains by the classifier; without any, take what was held out in training."""
    classifier = outcome.classifier
    temperature = float(classifier.head.temperature)
    if test:
        tested = join(test)
        everything = torch.arange(len(tested))

        def cuboids(index: torch.Tensor) -> torch.Tensor:
            return tested.cuboids[index]

        logits = in_parts(classifier, cuboids, everything) * temperature
        features = in_parts(partial(embed, classifier), cuboids, everything).numpy()
    elif len(outcome.held_out):
        tested, logits = data.subset(outcome.held_out), outcome.logits
        features = outcome.features[outcome.held_out].numpy()
    else:
        return None
    return Tested(
        data=tested,
        probabilities=(logits.double() / temperature).softmax(1).numpy(),
        uncalibrated=logits.double().softmax(1).numpy(),
        embeddings=features,
        unseen=bool(test),
    )


def _sentence(config: FinetuneConfig, start: Start, outcome: Outcome) -> str:
    kind = type(start.backbone).__name__
    told = f"Trained: {config.what}, from {config.backbone} ({kind})"
    if outcome.epochs:
        return f"{told}, for {outcome.epochs} epochs."
    return f"{told}." if config.fits_at_once else f"{told}; {_NOT_IMPROVED}."


def _check_folder(
    config: FinetuneConfig, sources: Sources, test: Sequence[Brain], *, resumed: bool
) -> None:
    """Raise unless OUT can be made anew, or is the run that is to go on."""
    inputs = [*sources.paths, *config.test, Path(config.backbone)]
    inputs += [path for brain in test for path in brain.paths]
    check_output(config.out, overwrite=config.overwrite or resumed, inputs=inputs)
    if resumed:
        check_same_settings(config.out, config, _MAY_CHANGE)


def _check_apart(sources: Sources, test: Sequence[Brain]) -> None:
    """Refuse a test brain that is trained on, also by another name of the same animal."""
    seen = {brain.signal for brain in sources.brains}
    groups = {group_of(brain) for brain in sources.brains}
    groups |= {cube.group for cube in sources.cubes}
    for brain in test:
        if brain.signal in seen or group_of(brain) in groups:
            raise InputError(
                f"--test names {brain.signal} of {group_of(brain)}, which --brains names too or "
                "--cubes are of; a test needs a brain that training has not seen"
            )


def _test_brains(config: FinetuneConfig) -> Sequence[Brain]:
    """Load test brains and check that they have labels before anything is computed."""
    if not config.test:
        return []
    brains = load_brains(config.test, voxel_size_um=config.voxel_size_um)
    for brain in brains:
        if brain.cells is None:
            raise CellsError(f"test brain {brain.name} has no cells; add a `cells` entry")
    return brains
