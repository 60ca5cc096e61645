"""The report of a fine-tuning: one HTML file that opens offline and prints.

Pictures lie inside it; it asks for no script, font or page from elsewhere. Whatever comes from
outside, as the name of a brain, is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from cubeclf_core.files import replacing
from finetune import report_text as text
from finetune.report_html import bullets, details, figure, section, table
from finetune.report_pictures import EXAMPLES, MEANING, RESULTS, SECTIONS, TRAINING, Picture
from finetune.report_style import STYLE

_METRICS = {
    "auc": "AUC",
    "average_precision": "average precision",
    "average_precision_less_prevalence": "… less share of cells",
    "recall_at_precision_0.9": "recall at precision 0.9",
    "recall_at_precision_0.95": "recall at precision 0.95",
    "false_positive_rate_at_recall_0.99": "false positive rate at recall 0.99",
}
_AT_THRESHOLD = {
    "precision": "precision",
    "recall": "recall",
    "false_positive_rate": "false positive rate",
    "f1": "F1",
    "balanced_accuracy": "balanced accuracy",
}
_SIGNED = ("average_precision_less_prevalence",)


@dataclass(frozen=True)
class Suspect:
    """A label that is probably wrong: its place, what it was given, and how far it is believed."""

    brain: str
    position: Sequence[float]
    given: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """All that a report tells.

    Attributes
    ----------
    title
        Of the run.
    trained
        What was trained, and from what; one sentence.
    split
        How labels were split into training, validation and test; one sentence.
    labels
        Source, what it was used for, cells and others: of each source and use.
    evaluation
        Of `finetune.evaluation.evaluate`, on the test brains, or where there are none on the
        validation labels; None if nothing was held out.
    unseen
        Whether that is of brains that had no say in any choice.
    scores
        Of `finetune.evaluation.evaluate_scores`, with ``classifier`` as the reference.
    training_prevalence
        Share of cells that probabilities are calibrated for; above 0 and below 1.
    temperature
        That logits were divided by; None if they were not.
    threshold_rule, threshold_remark
        How the threshold was chosen, and what was odd about it.
    pictures
        In the order of the report within each section.
    suspects
        Labels that are probably wrong, the likeliest first, and in `suspects_file` where all are.
    settings
        YAML.
    environment
        Versions, device and command line, by name.
    notes
        Sentences that a reader should see: what was odd about the data or the run.
    """

    title: str
    trained: str
    split: str
    labels: Sequence[tuple[str, str, int, int]]
    training_prevalence: float
    evaluation: Mapping[str, Any] | None = None
    unseen: bool = True
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    temperature: float | None = None
    threshold_rule: str = ""
    threshold_remark: str = ""
    pictures: Sequence[Picture] = ()
    suspects: Sequence[Suspect] = ()
    suspects_file: str = ""
    settings: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


def write_report(path: Path, content: ReportContent) -> None:
    """Write a report, whole or not at all.

    Parameters
    ----------
    path
        The HTML file.
    content
        What it tells.
    """
    page = render(content)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render(content: ReportContent) -> str:
    """Give the report as HTML."""
    sections = [_summary(content)]
    if content.evaluation:
        sections += [_results(content, content.evaluation), _meaning(content, content.evaluation)]
    sections += [_examples(content), _training(content), _settings(content)]
    body = "\n".join(part for part in sections if part)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(content.title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{escape(content.title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _summary(content: ReportContent) -> str:
    said = [content.trained, text.label_sentence(content.labels), content.split]
    tiles = ""
    if evaluation := content.evaluation:
        said += text.result_sentences(evaluation, unseen=content.unseen)
        said += text.rule_sentences(content.scores)
        rule, remark = content.threshold_rule, content.threshold_remark
        said.append(text.threshold_sentence(evaluation, rule, remark))
        said.append(text.calibration_sentence(evaluation, content.temperature))
        said.append(text.prevalence_sentence(evaluation, content.training_prevalence))
        tiles = _tiles(evaluation["pooled"])
    else:
        said.append("No labels were held out, so nothing is known about how good it is.")
    notes = [*content.notes, *(content.evaluation or {}).get("notes", ())]
    return f'<section class="summary">\n{tiles}\n{bullets(said)}\n</section>\n' + (
        f'<section class="notes">\n<h2>To keep in mind</h2>\n{bullets(notes)}\n</section>'
        if notes
        else ""
    )


def _tiles(pooled: Mapping[str, Any]) -> str:
    """Give the four numbers that are asked for first."""
    shown = {
        "average precision": "average_precision",
        "over guessing": "average_precision_less_prevalence",
        "AUC": "auc",
        "false positive rate at recall 0.99": "false_positive_rate_at_recall_0.99",
    }
    tiles = [
        f"<div><b>{_value(pooled, name)}</b><span>{escape(title)}</span></div>"
        for title, name in shown.items()
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _results(content: ReportContent, evaluation: Mapping[str, Any]) -> str:
    rows = _brains(evaluation)
    block_um, n = evaluation["block_um"], evaluation["resamples"]
    explained = (
        f"Below each number is its 95 % interval, from {n:,} resamples of blocks of {block_um:g} "
        "µm: neighbouring candidates are drawn together, as they share tissue and often mistakes. "
        "It says how far a number would move with other tissue of the same brains. How far it "
        "moves from brain to brain, only several brains beside one another can show."
    )
    parts = [
        f"<p>{escape(explained)}</p>",
        table(("", "labels", "cells", *_METRICS.values()), _metric_rows(rows, _METRICS)),
        "<h3>At the threshold</h3>",
        table(("", "labels", "cells", *_AT_THRESHOLD.values()), _metric_rows(rows, _AT_THRESHOLD)),
    ]
    if content.scores:
        parts += ["<h3>Beside the simple rules</h3>", *_rules(content.scores)]
    return section(RESULTS, [*parts, _figures(content, RESULTS)])


def _rules(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Give a table of all brains pooled, and one of each brain to unfold."""
    header = ("", *_METRICS.values(), "average precision, lead of the classifier")

    def rows(results: Iterable[tuple[str, Mapping[str, Any]]]) -> list[list[str]]:
        return [
            [
                escape(name),
                *(_value(result, metric) for metric in _METRICS),
                _value(result["lead"], "average_precision", signed=True)
                if result["lead"]
                else text.MISSING,
            ]
            for name, result in results
        ]

    parts = [table(header, rows((name, result["pooled"]) for name, result in scores.items()))]
    brains = list(next(iter(scores.values()))["brains"])
    if len(brains) > 1:
        inner = "".join(
            f"<h4>{escape(brain)}</h4>"
            + table(header, rows((name, r["brains"][brain]) for name, r in scores.items()))
            for brain in brains
        )
        parts.append(details("Each brain", inner))
    return parts


def _meaning(content: ReportContent, evaluation: Mapping[str, Any]) -> str:
    header = (
        "",
        "calibration error before scaling",
        "after",
        "Brier score before scaling",
        "after",
    )
    rows = []
    for name, result in _brains(evaluation).items():
        before, after = (result["calibration"][when] for when in ("before", "after"))
        row = [escape(name)]
        for metric in ("ece", "brier"):
            row.append(text.number(before[metric] if before else None))
            interval = metric in result["intervals"]
            row.append(_value(result, metric) if interval else text.number(after[metric]))
        rows.append(row)
    explained = (
        "Another share of cells among the candidates makes another probability of the same "
        "picture, if cells look alike and only their numbers differ."
    )
    shares = [
        [escape(cell) for cell in row]
        for row in text.prevalence_rows(evaluation, content.training_prevalence)
    ]
    parts = [
        table(header, rows),
        f"<p>{escape(explained)}</p>",
        table(
            (
                "share of cells",
                "what 0.5 means there",
                "what the threshold means there",
                "precision at the threshold",
            ),
            shares,
        ),
    ]
    return section(MEANING, [*parts, _figures(content, MEANING)])


def _examples(content: ReportContent) -> str:
    parts = [_figures(content, EXAMPLES)]
    if content.suspects:
        where = f" All are in {content.suspects_file}." if content.suspects_file else ""
        explained = (
            "Labels that the classifier, trained without them, confidently disagrees with. It may "
            f"be wrong, or they: look at them.{where}"
        )
        rows = [
            [
                str(rank),
                escape(suspect.brain),
                escape(", ".join(f"{p:.0f}" if p == p else "?" for p in suspect.position)),
                escape(suspect.given),
                text.number(suspect.probability),
            ]
            for rank, suspect in enumerate(content.suspects, 1)
        ]
        header = ("rank", "brain", "z, y, x (voxels)", "labelled", "probability of that label")
        shown = table(header, rows, text_columns=4)
        parts += [
            "<h3>Labels that may be wrong</h3>",
            f"<p>{escape(explained)}</p>",
            details(f"The first {len(rows)}", shown) if len(rows) > 10 else shown,
        ]
    return section(EXAMPLES, parts)


def _training(content: ReportContent) -> str:
    rows = [
        [escape(source), escape(use), f"{cells + others:,}", f"{cells:,}", f"{others:,}"]
        for source, use, cells, others in content.labels
    ]
    shown = (
        table(("source", "used for", "labels", "cells", "others"), rows, text_columns=2)
        if rows
        else ""
    )
    return section(
        TRAINING, [f"<p>{escape(content.split)}</p>", shown, _figures(content, TRAINING)]
    )


def _settings(content: ReportContent) -> str:
    parts = []
    if content.settings:
        parts.append(details("Settings", f"<pre>{escape(content.settings)}</pre>"))
    if content.environment:
        rows = [
            [escape(name), f"<code>{escape(_shown(value))}</code>"]
            for name, value in content.environment.items()
        ]
        parts.append(details("Versions and machine", table(("", ""), rows, text_columns=2)))
    return section("Settings and versions", parts)


def _brains(evaluation: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Give the results of each brain, the worst marked, and of several also all together."""
    worst = evaluation["worst_brain"]
    shown = {
        f"{name} (worst)" if name == worst else name: result
        for name, result in evaluation["brains"].items()
    }
    return {**shown, "all pooled": evaluation["pooled"]} if len(shown) > 1 else shown


def _metric_rows(
    rows: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, str]
) -> list[list[str]]:
    return [
        [
            escape(name),
            f"{result['n']:,}",
            f"{result['cells']:,}",
            *(_value(result, metric) for metric in metrics),
        ]
        for name, result in rows.items()
    ]


def _value(result: Mapping[str, Any], name: str, *, signed: bool = False) -> str:
    """Give a number with its interval below it."""
    signed = signed or name in _SIGNED
    value, ends = result[name], result["intervals"].get(name)
    if value is None or not ends:
        return text.number(value, signed=signed)
    low, high = (text.number(end, signed=signed) for end in ends)
    return f"{text.number(value, signed=signed)}<small>{low} to {high}</small>"


def _figures(content: ReportContent, where: str) -> str:
    assert all(picture.section in SECTIONS for picture in content.pictures)
    shown = [figure(picture) for picture in content.pictures if picture.section == where]
    return "\n".join(shown)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
