"""Where the reference of a comparison and its other contenders are apart, of differences.csv."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from pathlib import Path

import yaml

from benchmarks.comparison import PLANS
from finetune.comparing.plan import budget_name
from finetune.comparing.table import TITLES

AHEAD, BEHIND, NEITHER, UNKNOWN = "+", "−", "·", "?"


def apart(file: Path, name: str) -> list[str]:
    """Write a table for each measure: a sign for each group.

    Parameters
    ----------
    file
        `differences.csv` of a comparison: the reference less another contender, with the ends of
        95 % intervals.
    name
        Of the comparison, whose plan names the reference.

    Returns
    -------
    list of str
        Paragraphs.
    """
    plan = yaml.safe_load((PLANS / f"{name}.yaml").read_text(encoding="utf-8"))
    signs: dict[tuple[str, str, str, str], str] = {}
    groups, rows, contenders = (dict[str, None]() for _ in range(3))
    with file.open(encoding="utf-8", newline="") as opened:
        for line in csv.DictReader(opened):
            row = f"{line['protocol']} {budget_name(int(line['budget']))}"
            key = line["measure"], line["contender"], row, line["group"]
            signs[key] = _sign(float(line["low"]), float(line["high"]))
            groups[line["group"]] = rows[row] = contenders[line["contender"]] = None
    parts = [
        f"Where **{plan['reference']}** is ahead of another ({AHEAD}), behind ({BEHIND}) or "
        f"neither ({NEITHER}), in {', '.join(groups)}, by 95 % intervals of a bootstrap over "
        "blocks of space, which stand in `differences.csv`:"
    ]
    for measure, title in TITLES.items():
        lines: dict[str, list[str]] = defaultdict(list)
        for contender in contenders:
            for row in rows:
                cell = [signs.get((measure, contender, row, group), UNKNOWN) for group in groups]
                lines[contender].append(" ".join(cell) if set(cell) != {UNKNOWN} else "")
        head = f"| {title} | {' | '.join(rows)} |\n|{' --- |' * (1 + len(rows))}"
        body = [f"| {who} | {' | '.join(cells)} |" for who, cells in lines.items()]
        parts.append("\n".join([head, *body]))
    return parts


def _sign(low: float, high: float) -> str:
    if math.isnan(low):
        return UNKNOWN
    return AHEAD if low > 0 else BEHIND if high < 0 else NEITHER
