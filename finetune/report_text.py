"""What a report says first, in plain sentences made from its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cubeclf_core.calibration import precision_at_prevalence, shift_prevalence

Result = Mapping[str, Any]

MISSING = "–"
_SHARES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75)


def number(value: float | None, *, signed: bool = False) -> str:
    """Write a metric with three digits, and a dash for none."""
    if value is None:
        return MISSING
    return (f"{value:+.3f}" if signed else f"{value:.3f}").replace("-", "\N{MINUS SIGN}")


def with_interval(result: Result, name: str, *, signed: bool = False) -> str:
    """Write a metric with its 95 % interval, if it has one."""
    text = number(result[name], signed=signed)
    ends = result["intervals"].get(name)
    if result[name] is None or not ends:
        return text
    low, high = (number(end, signed=signed) for end in ends)
    return f"{text} (95 % interval {low} to {high})"


def percent(share: float) -> str:
    """Write a share in percent, with as many digits as it needs."""
    return f"{100 * share:.3g} %"


def result_sentences(evaluation: Result, *, unseen: bool) -> list[str]:
    """Say how good the classifier is, on all brains and on the worst."""
    pooled, brains = evaluation["pooled"], evaluation["brains"]
    what = "the test brain" if len(brains) == 1 else f"the {len(brains)} test brains"
    if not unseen:
        what = "the validation labels"
    if pooled["average_precision"] is None:
        return [
            f"On {what}, all {pooled['n']:,} labels are of one class: how well cells are told "
            "apart cannot be measured."
        ]
    names = f" ({next(iter(brains))})" if len(brains) == 1 and unseen else ""
    said = [
        f"On {what}{names}, with {pooled['n']:,} labelled candidates of which "
        f"{percent(pooled['prevalence'])} are cells, average precision is "
        f"{with_interval(pooled, 'average_precision')}, where guessing would have "
        f"{number(pooled['prevalence'])}. The area under the ROC curve is "
        f"{with_interval(pooled, 'auc')}.",
    ]
    if not unseen:
        said.append(
            "There was no test brain. These labels had a say in the choice of epoch, threshold "
            "and temperature, so the numbers flatter: name a brain with --test to learn the truth."
        )
    if worst := evaluation["worst_brain"]:
        said.append(
            f"The worst brain is {worst}: average precision "
            f"{with_interval(brains[worst], 'average_precision')}, "
            f"{number(brains[worst]['average_precision_less_prevalence'], signed=True)} over "
            "guessing."
        )
    return said


def rule_sentences(scores: Mapping[str, Result]) -> list[str]:
    """Say whether the classifier beats each simple rule."""
    name = "average_precision"
    said = []
    for rule, result in scores.items():
        pooled = result["pooled"]
        lead = pooled["lead"]
        if lead is None or lead[name] is None:
            continue
        ends = lead["intervals"][name]
        difference = with_interval(lead, name, signed=True)
        what = f"the simple rule {rule}, with average precision {number(pooled[name])}"
        if ends is None:
            said.append(f"It differs from {what}, by {difference}.")
        elif ends[0] > 0:
            said.append(f"It is better than {what}, by {difference}.")
        elif ends[1] < 0:
            said.append(f"It is WORSE than {what}, by {difference}: use the rule.")
        else:
            said.append(f"It is not shown to be better than {what}: {difference}.")
    return said


def threshold_sentence(evaluation: Result, rule: str, remark: str) -> str:
    """Say how the threshold was chosen, and what it does."""
    pooled = evaluation["pooled"]
    chosen = f"Candidates count as cells from a probability of {evaluation['threshold']:.3g} on"
    chosen += f" ({rule})" if rule else ""
    chosen += f"; {remark}" if remark else ""
    if pooled["recall"] is None:
        return f"{chosen}."
    if pooled["precision"] is None:
        return f"{chosen}. No candidate reaches it."
    return (
        f"{chosen}. Of the cells, {percent(pooled['recall'])} are found; of what is called a cell, "
        f"{percent(pooled['precision'])} are cells."
    )


def calibration_sentence(evaluation: Result, temperature: float | None) -> str:
    """Say how far probabilities are from the truth."""
    pooled = evaluation["pooled"]["calibration"]
    errors = [brain["calibration"]["after"]["ece"] for brain in evaluation["brains"].values()]
    said = f"Probabilities are off by {number(pooled['after']['ece'])} on average"
    if len(errors) > 1:
        said += f", and by {number(max(errors))} in the brain where they are worst"
    said += " (expected calibration error)"
    if temperature is None or pooled["before"] is None:
        return f"{said}; they were not scaled."
    before = number(pooled["before"]["ece"])
    return (
        f"{said}. Before they were scaled, by a temperature of {temperature:.3g}, it was {before}."
    )


def prevalence_sentence(evaluation: Result, share: float) -> str:
    """Say what brain the probabilities are for, and what they are worth in another."""
    text = (
        f"Probabilities are calibrated for brains where {percent(share)} of the candidates are "
        "cells, as among the training labels."
    )
    other = share / 5
    half = percent(float(shift_prevalence(0.5, share, other)))
    text += f" Where {percent(other)} are, a probability of 0.5 really means {half}"
    pooled = evaluation["pooled"]
    if pooled["recall"] is None or pooled["precision"] is None:
        return f"{text}."
    rates = pooled["recall"], pooled["false_positive_rate"]
    here, there = precision_at_prevalence(*rates, np.array([share, other]))
    return (
        f"{text}. The threshold has a precision of {percent(here)} in the former, of "
        f"{percent(there)} in the latter."
    )


def prevalence_rows(evaluation: Result, share: float) -> list[tuple[str, str, str, str]]:
    """Give a row for each share of cells: what 0.5 means there, and what the threshold does."""
    pooled = evaluation["pooled"]
    rows = []
    for other in sorted({*_SHARES, share}):
        half = float(shift_prevalence(0.5, share, other))
        same = float(shift_prevalence(evaluation["threshold"], share, other))
        precision = None
        if pooled["recall"] is not None:
            rates = pooled["recall"], pooled["false_positive_rate"]
            found = float(precision_at_prevalence(*rates, np.array([other]))[0])
            precision = found if np.isfinite(found) else None
        mark = " (training labels)" if other == share else ""
        rows.append((f"{percent(other)}{mark}", number(half), number(same), number(precision)))
    return rows


def label_sentence(labels: Sequence[tuple[str, str, int, int]]) -> str:
    """Say how many labels were used for what.

    Parameters
    ----------
    labels
        Source, what it was used for, cells and others.
    """
    parts = []
    for use in dict.fromkeys(use for _, use, _, _ in labels):
        own = [row for row in labels if row[1] == use]
        cells, others = sum(row[2] for row in own), sum(row[3] for row in own)
        sources = f"{len(own)} source{'s' * (len(own) != 1)}"
        parts.append(f"{use}: {cells + others:,} ({cells:,} cells, {others:,} others; {sources})")
    return f"Labels for {'; for '.join(parts)}." if parts else ""
