"""What the classifier of a run is worth: numbers, pictures and the report, from held-out labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cubeclf_core.axes import Size3
from cubeclf_core.cli import to_yaml
from cubeclf_core.environment import environment
from cubeclf_core.heads import CELL_CLASS
from cubeclf_core.rules import contrast, density
from cubeclf_core.runs import RunFolder
from finetune.config import FinetuneConfig
from finetune.evaluation import evaluate, evaluate_scores
from finetune.label_errors import write_label_errors
from finetune.labels import Labelled
from finetune.report import ReportContent, Suspect, write_report
from finetune.report_pictures import (
    Picture,
    Predicted,
    evaluation_pictures,
    hardest_mistakes,
    mistake_pictures,
    training_pictures,
)
from finetune.thresholds import ChosenThreshold

REPORT = "report.html"
SUSPECTS = "label_errors"
_SHOWN = 30  # suspected labels in the report; the file has all
Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Tested:
    """Labels that the network which scored them has not learned from.

    Attributes
    ----------
    data
        The labels.
    probabilities, uncalibrated
        Shape (n, class), after and before temperature scaling.
    embeddings
        Shape (n, feature).
    unseen
        Whether they are of test brains, which had no say in any choice.
    """

    data: Labelled
    probabilities: Probabilities
    uncalibrated: Probabilities
    embeddings: npt.NDArray[np.float32]
    unseen: bool


@dataclass(frozen=True, kw_only=True)
class Account:
    """What a run has to tell beside its results.

    Attributes
    ----------
    config
        Its settings.
    trained
        What was trained, in a sentence.
    split
        What was held out, in a sentence.
    labels
        All that it learned from.
    suspected
        What `label_errors` says of those that were held out once, by their number.
    voxel_size_um
        Of the cuboids, z y x.
    temperature
        That logits are divided by; None if nothing was held out to find it by.
    threshold
        From which probability on a candidate is a cell.
    classes
        Names.
    notes
        What a reader should know.
    """

    config: FinetuneConfig
    trained: str
    split: str
    labels: Labelled
    suspected: tuple[npt.NDArray[np.int64], Probabilities]
    voxel_size_um: Size3
    temperature: float | None
    threshold: ChosenThreshold
    classes: tuple[str, ...]
    notes: Sequence[str] = ()


def assess(run: RunFolder, account: Account, tested: Tested | None) -> dict[str, Any]:
    """Measure, write ``metrics.json``, the label errors and the report, and tell the main numbers.

    Parameters
    ----------
    run
        Where they go.
    account
        What was done.
    tested
        What it is measured on; None if nothing was held out.

    Returns
    -------
    dict
        What ``metrics.json`` holds.
    """
    evaluation: dict[str, Any] | None = None
    scores: dict[str, Any] = {}
    pictures: list[Picture] = []
    if tested is not None:
        evaluation, scores, pictures = _measure(account, tested)
        _tell(run, evaluation, scores, tested)
    lines = _log_of(run)
    pictures += training_pictures([line for line in lines if "fold" in line])
    index, belief = account.suspected
    data = account.labels
    where = ""
    if len(index):
        folder = run.path / SUSPECTS
        names = _names(data)
        write_label_errors(folder, index, belief, data.labels, data.positions, names)
        where = SUSPECTS
        run.tell(f"labels      {len(index)} may be wrong: {folder}")
    content = ReportContent(
        title=account.config.out.resolve().name,
        trained=account.trained,
        split=account.split,
        labels=_counted(data, "training") + (_counted(tested.data, "test") if tested else []),
        training_prevalence=float((data.labels == CELL_CLASS).mean()),
        evaluation=evaluation,
        unseen=tested is not None and tested.unseen,
        scores=scores,
        temperature=account.temperature,
        threshold_rule=account.config.threshold,
        threshold_remark=account.threshold.remark,
        pictures=pictures,
        suspects=[
            _suspect(data, i, p, account.classes)
            for i, p in zip(index[:_SHOWN].tolist(), belief, strict=False)
        ],
        suspects_file=where,
        settings=to_yaml(account.config),
        environment=environment(),
        notes=account.notes,
    )
    metrics = {
        "labels": {"n": len(data), "cells": int((data.labels == CELL_CLASS).sum())},
        "split": account.split,
        "threshold": account.threshold.threshold,
        "temperature": account.temperature,
        "unseen": content.unseen,
        "evaluation": evaluation,
        "scores": scores,
        "notes": [*account.notes],
    }
    run.write_json("metrics.json", metrics)
    write_report(run.path / REPORT, content)
    run.tell(f"report      {run.path / REPORT}")
    return metrics


def _measure(
    account: Account, tested: Tested
) -> tuple[dict[str, Any], dict[str, Any], list[Picture]]:
    data, seed = tested.data, account.config.seed
    rules = simple_rules(data, account.voxel_size_um)
    evaluation = evaluate(
        data.labels,
        tested.probabilities,
        data.positions_um,
        data.brains,
        account.threshold.threshold,
        uncalibrated=tested.uncalibrated,
        classes=account.classes,
        seed=seed,
    )
    every = {"classifier": tested.probabilities[:, CELL_CLASS], **rules}
    scores = evaluate_scores(
        data.labels, every, data.positions_um, data.brains, reference="classifier", seed=seed
    )
    predicted = Predicted(
        labels=data.labels,
        probabilities=tested.probabilities,
        uncalibrated=tested.uncalibrated,
        positions=data.positions,
        positions_um=data.positions_um,
        brains=data.brains,
        scores=rules,
        embeddings=tested.embeddings,
    )
    pictures = evaluation_pictures(predicted, evaluation, seed)
    mistakes = hardest_mistakes(predicted, account.threshold.threshold)
    shown = [(index, data.cuboids[index].numpy()) for index in mistakes]
    pictures += mistake_pictures(predicted, shown[0], shown[1], account.voxel_size_um)
    return evaluation, scores, pictures


def simple_rules(data: Labelled, voxel_size_um: Size3) -> dict[str, Probabilities]:
    """Score labels by what costs nothing: contrast, and how many candidates are around.

    Contrast is the best of four rules, chosen on these very labels and for all brains alike: a high
    bar. Density is left out where positions are not known; it counts labelled candidates only.
    """
    is_cell = (data.labels == CELL_CLASS).astype(np.int64)
    scores: dict[str, Probabilities] = {}
    if 0 < is_cell.sum() < len(is_cell):
        scores["contrast"] = contrast(data.cuboids[:, 0].numpy(), is_cell, voxel_size_um)[1]
    if np.isfinite(data.positions_um).all():
        crowding = np.zeros(len(data))
        volumes = np.array(data.volumes)
        for volume in np.unique(volumes):
            own = np.flatnonzero(volumes == volume)
            crowding[own] = density(data.positions_um[own], (1.0, 1.0, 1.0))
        scores["density"] = crowding
    return scores


def _tell(
    run: RunFolder, evaluation: Mapping[str, Any], scores: Mapping[str, Any], tested: Tested
) -> None:
    where = "test" if tested.unseen else "held out"
    for name, result in scores.items():
        for brain, found in result["brains"].items():
            if found["auc"] is None:
                continue
            run.tell(
                f"{where}, {brain}: {name:<10} AUC {found['auc']:.3f}, average precision "
                f"{found['average_precision']:.3f} "
                f"({found['average_precision_less_prevalence']:+.3f} over the share of cells)"
            )
    if evaluation["worst_brain"]:
        run.tell(f"worst       {evaluation['worst_brain']}")


def _log_of(run: RunFolder) -> list[dict[str, Any]]:
    path = run.path / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _counted(data: Labelled, use: str) -> list[tuple[str, str, int, int]]:
    brains = np.array(data.brains)
    counted = []
    for brain in dict.fromkeys(data.brains):
        cells = data.labels[brains == brain] == CELL_CLASS
        counted.append((brain, use, int(cells.sum()), int((~cells).sum())))
    return counted


def _suspect(data: Labelled, i: int, belief: float, classes: Sequence[str]) -> Suspect:
    given = classes[int(data.labels[i])]
    return Suspect(_names(data)[i], data.positions[i].tolist(), given, float(belief))


def _names(data: Labelled) -> list[str]:
    """Name the volume of each: by its brain, with a number where that has several."""
    volumes: dict[str, dict[str, int]] = {}
    for brain, volume in zip(data.brains, data.volumes, strict=True):
        known = volumes.setdefault(brain, {})
        known.setdefault(volume, len(known) + 1)
    return [
        brain if len(volumes[brain]) == 1 else f"{brain} {volumes[brain][volume]}"
        for brain, volume in zip(data.brains, data.volumes, strict=True)
    ]
