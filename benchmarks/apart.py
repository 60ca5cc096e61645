"""Where the reference of a comparison and its other contenders are apart, of differences.csv."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import yaml

from benchmarks.comparison import PLANS
from finetune.comparing.plan import other_name, row_name
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
    groups, rows = dict[str, None](), dict[str, None]()
    with file.open(encoding="utf-8", newline="") as opened:
        for line in csv.DictReader(opened):
            budget, own = int(line["budget"]), int(line["contender_budget"])
            row = row_name((line["protocol"], budget))
            contender = other_name(line["contender"], own, budget)
            key = line["measure"], contender, row, line["group"]
            signs[key] = _sign(float(line["low"]), float(line["high"]))
            groups[line["group"]] = rows[row] = None
    if not signs:
        return []
    parts = [
        f"Where **{plan['reference']}** is ahead of another ({AHEAD}), behind ({BEHIND}) or "
        f"neither ({NEITHER}), in {', '.join(groups)}, by 95 % intervals of a bootstrap over "
        f"blocks of space, which stand in `differences.csv`; {UNKNOWN} is where there is none. "
        "They say how far a mean of these seeds would move with other tissue. Of so many, one in "
        "twenty would be apart by chance. Labels are those of the column for both, or beside the "
        "other's name. Means are of the seeds that both have, which may be the first alone where "
        "the tables above have means of more; where labels differ, of all that each has:"
    ]
    known = dict.fromkeys(contender for _, contender, _, _ in signs)
    for measure, title in TITLES.items():
        body = []
        for contender in known:
            cells = []
            for row in rows:
                cell = [signs.get((measure, contender, row, group), UNKNOWN) for group in groups]
                cells.append(" ".join(cell) if set(cell) != {UNKNOWN} else "")
            body.append(f"| {contender} | {' | '.join(cells)} |")
        head = f"| {title} | {' | '.join(rows)} |\n|{' --- |' * (1 + len(rows))}"
        parts.append("\n".join([head, *body]))
    return parts


def _sign(low: float, high: float) -> str:
    if math.isnan(low):
        return UNKNOWN
    return AHEAD if low > 0 else BEHIND if high < 0 else NEITHER
