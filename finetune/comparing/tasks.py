"""The two honest questions, as lists of labels: one's own brain, and brains never labelled."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cubeclf_core.axes import Size3
from cubeclf_core.errors import InputError
from finetune.comparing.plan import ALL, Own, Plan, budget_name
from finetune.labels import Labelled

Index = npt.NDArray[np.int64]
_LEAST = 2  # labels of each class


@dataclass(frozen=True)
class Task:
    """Labels to learn from, and others to be tested on; the same for every contender.

    Attributes
    ----------
    protocol
        One of `PROTOCOLS`.
    budget
        How many were to be drawn, `ALL` for all; of "both", of the tested group.
    group
        That is tested.
    seed
        Which draw.
    learn, test
        Sorted numbers of labels.
    """

    protocol: str
    budget: int
    group: str
    seed: int
    learn: Index
    test: Index

    @property
    def name(self) -> str:
        """What to call it when speaking to a person."""
        labels = f"{budget_name(self.budget)} labels"
        return f"{self.group}, {self.protocol}, {labels}, seed {self.seed}"


@dataclass(frozen=True)
class Answer:
    """What a contender says of what a task tests.

    Attributes
    ----------
    scores
        Shape (n,), higher for cells; probabilities, if it is a network.
    epochs
        That it was trained for; 0 where nothing is trained, or a head was fitted at once.
    train_seconds, test_seconds
        Of the training that led to the scores, and of the scoring; a rule does both at once, which
        counts as training. Features of a frozen backbone are computed before, once for all tasks,
        and count in neither.
    """

    scores: npt.NDArray[np.float64]
    epochs: int
    train_seconds: float
    test_seconds: float


def make_task(
    plan: Plan, data: Labelled, reach: Size3, row: tuple[str, int], group: str, seed: int
) -> Task:
    """Draw the labels of one task.

    Draws are nested: a larger budget has the labels of a smaller one, and more. Those of "both"
    are those of "own", and all labels of other groups.

    Parameters
    ----------
    plan
        Of the comparison.
    data
        All labels.
    reach
        z y x in µm, from where on cuboids share no voxel.
    row
        Protocol and budget.
    group
        That is tested.
    seed
        Which draw.

    Raises
    ------
    InputError
        If either part would lack labels of a class.
    """
    protocol, budget = row
    of_group = np.array([brain == group for brain in data.brains])
    others, own = np.flatnonzero(~of_group), protocol != "transfer"
    if own:
        assert plan.own is not None
        learn, test = _parts(plan.own, data, reach, group, of_group)
    else:
        learn, test = others, np.flatnonzero(of_group)
    random = np.random.default_rng((seed, zlib.crc32(group.encode()), own))
    drawn = _draw(data.labels, random.permutation(learn), budget)
    if protocol == "both":
        drawn = np.concatenate([drawn, others])
    for what, index in (("learn from", drawn), ("test on", test)):
        rarest = min(int(np.sum(data.labels[index] == kind)) for kind in (0, 1))
        if rarest < _LEAST:
            raise InputError(
                f"group {group}: of the {len(index)} labels to {what} ({protocol}), {rarest} are "
                f"of the rarer class; expected {_LEAST} at least"
            )
    return Task(protocol, budget, group, seed, np.sort(drawn), test)


def check_tasks(plan: Plan, data: Labelled, reach: Size3) -> list[str]:
    """Make all tasks once, to see whether they can be made.

    Returns
    -------
    list of str
        What a report should say: where there are fewer labels than a budget asks for.

    Raises
    ------
    InputError
        If one cannot.
    """
    if (plan.both or plan.transfer) and len(data.names) < 2:
        raise InputError(
            f"{'both' if plan.both else 'transfer'} needs labels of two groups at least, found "
            f"{data.names[0]} alone; name another brain, or ask for own only"
        )
    for contender in plan.contenders:
        if unknown := [name for name in contender.backbone if name and name not in data.names]:
            raise InputError(
                f"contender {contender.name} has a {contender.weights} for the group "
                f"{unknown[0]}; found "
                f"labels of {', '.join(data.names)}"
            )
        if contender.backbone:
            for group in data.names:
                contender.backbone_for(group)
    remarks = []
    tried = () if plan.rates_labels is None else (plan.rates_labels,)
    searched = [(protocol, n) for n in tried for protocol in dict.fromkeys(p for p, _ in plan.rows)]
    for row in dict.fromkeys([*plan.rows, *searched]):
        for group in data.names:
            tasks = [make_task(plan, data, reach, row, group, s) for s in range(plan.seeds)]
            own = [i for i in tasks[0].learn if row[0] != "both" or data.brains[i] == group]
            if (n := len(own)) < row[1]:
                remarks.append(f"{group}, {row[0]}: {n} labels where {row[1]} are asked for")
    return remarks


def _parts(
    own: Own, data: Labelled, reach: Size3, group: str, of_group: npt.NDArray[np.bool_]
) -> tuple[Index, Index]:
    """Two parts of a group with a gap between them, in which no label is used."""
    index = np.flatnonzero(of_group)
    at = data.positions_um[index, own.axis]
    if not np.isfinite(at).all():
        raise InputError(
            f"group {group} has labels whose places are not known, so that its parts cannot be "
            "told apart; leave `own` out, or name the positions in the cubes' file names"
        )
    low, extent = float(at.min()), float(np.ptp(at))
    below, above = (low + share * extent for share in (own.learn_below, own.test_above))
    if above - below < reach[own.axis]:
        raise InputError(
            f"group {group}: {above - below:.0f} µm lie between labels to learn from and labels to "
            f"test on along {'zyx'[own.axis]}, expected {reach[own.axis]:.0f}, so that no voxel is "
            "shared; put own.learn_below and own.test_above farther apart, or choose another axis"
        )
    return index[at < below], index[at > above]


def _draw(labels: npt.NDArray[np.int64], order: Index, budget: int) -> Index:
    """Take the first of a random order, but two of each class whatever it says."""
    if budget == ALL or budget >= len(order):
        return order
    always = np.concatenate([order[labels[order] == kind][:_LEAST] for kind in (0, 1)])
    rest = order[~np.isin(order, always)]
    return np.concatenate([always, rest[: budget - len(always)]])
