"""Monitors of a pretraining: they see a collapse while it happens, warn, and then stop the run.

Self-distillation can collapse in two ways (Caron et al., arXiv:2104.14294, 5.3). *Uniform*: the
teacher says nothing, its entropy is ln K and the loss stays there. *Point*: the teacher says one
thing for all cuboids, its entropy is 0 and the loss goes there too. Any objective can end in a
third: *features* that no longer tell cuboids apart, whatever the loss says.

Nothing is judged in the warm-up, and one odd batch is no collapse: what is judged is the median of
the last checks, and it has to be bad for a while. A run is always warned at one step before it is
stopped at a later one, and its last step is never taken from it. All that is remembered is in
`Monitors.state`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from cubeclf_core.errors import RunFailed

_WARM_UP = 0.1  # share of the steps
_LEAST_WARM_UP = 50  # steps
_PATIENCE = 0.05  # share of the steps
_LEAST_PATIENCE, _MOST_PATIENCE = 20, 1000  # steps
_STOP = 3  # patiences
_RECENT = 5  # checks whose median counts

_FLAT = 0.98  # of ln K: an entropy or a loss above has hardly begun to fall
_APART = 0.001  # of ln K: a teacher that says less of the single cuboid says nothing
_POINT = 0.02  # of ln K: an entropy below leaves hardly more than one prototype
_SAME = {"mean_cosine": 0.999, "feature_deviation": 0.02, "rank_me": 1.1}  # as good as one point
_LESS = 0.25  # of what the untrained network has

_TOLD = ("teacher_entropy", "marginal_entropy", "cross_entropy")


class Collapsed(RunFailed):
    """What is learned is the same for all cuboids, and training longer would not change that."""


@dataclass(frozen=True)
class _Kind:
    """A kind of collapse: what it means, and what may help."""

    meaning: str
    advice: str


_KINDS = {
    "uniform": _Kind(
        "the teacher says nothing of any cuboid (uniform collapse)",
        "try a lower learning rate, a longer warm-up, a lower teacher temperature, or a last layer "
        "that stays frozen longer",
    ),
    "point": _Kind(
        "the teacher says the same of all cuboids (point collapse)",
        "try a higher teacher temperature, a lower learning rate, or a larger batch",
    ),
    "features": _Kind(
        "features no longer tell cuboids apart (representation collapse)",
        "try a lower learning rate, a longer warm-up, less weight decay, or more KoLeo where the "
        "objective has it",
    ),
}


class Monitors:
    """Watch for collapses, by what an objective tells and by embeddings of monitored cuboids.

    Parameters
    ----------
    total_steps
        Of the training.
    enabled
        Without, nothing is ever found.
    patience
        Steps that a collapse has to last before it is told of; three times as many stop the run,
        where it was told of before. By default a twentieth of the training, 20 to 1000.
    warm_up
        Steps at the start that are not judged. By default a tenth of the training, at least 50.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        enabled: bool = True,
        patience: int | None = None,
        warm_up: int | None = None,
    ) -> None:
        usual = min(max(round(_PATIENCE * total_steps), _LEAST_PATIENCE), _MOST_PATIENCE)
        self.patience = usual if patience is None else patience
        usual = max(round(_WARM_UP * total_steps), _LEAST_WARM_UP)
        self.warm_up = usual if warm_up is None else warm_up
        self.enabled = enabled
        self._last = total_steps - 1
        self._recent: list[list[float]] = []
        self._since: dict[str, int] = {}
        self._warned: dict[str, int] = {}  # at which step

    def check(self, step: int, told: Mapping[str, float]) -> list[str]:
        """Judge what an objective tells of a step.

        Parameters
        ----------
        step
            From 0.
        told
            Where the objective has a teacher: ``teacher_entropy``, mean entropy of what it says of
            a view; ``marginal_entropy``, entropy of what it says on average over the batch;
            ``cross_entropy`` of the student; ``uniform``, ln K. Over the whole batch, all ranks.
            Anything else is passed over.

        Returns
        -------
        list of str
            Warnings, mostly none, a line each; a collapse that goes on is told of once, and again
            where only the last step keeps it from stopping the run.

        Raises
        ------
        Collapsed
            If it has gone on for too long and was told of at an earlier step; not at the last step.
        """
        if not self.enabled or not {*_TOLD, "uniform"} <= told.keys():
            return []
        unit = told["uniform"]
        self._recent = [*self._recent, [told[name] / unit for name in _TOLD]][-_RECENT:]
        teacher, marginal, loss = (median(values) for values in zip(*self._recent, strict=True))
        apart = median(whole - single for single, whole, _ in self._recent)
        seen = (
            f"entropy of the teacher {teacher * unit:.4g}, of its mean {marginal * unit:.4g}, "
            f"cross-entropy {loss * unit:.4g}, where ln K is {unit:.4g}"
        )
        # A healthy run may start out as flat, for longer than the warm-up, but then its teacher
        # tells cuboids apart a little: about ten times as much as one that has collapsed.
        uniform = min(teacher, loss) > _FLAT and apart < _APART
        return [
            *self._follow("uniform", step, uniform, seen),
            *self._follow("point", step, marginal < _POINT, seen),
        ]

    def check_embeddings(
        self, step: int, health: Mapping[str, float], untrained: Mapping[str, float]
    ) -> list[str]:
        """Judge pooled features of monitored cuboids, always the same ones.

        Parameters
        ----------
        step
            From 0; the number of all steps after the last.
        health
            What `cubeclf_core.metrics.embedding_health` says of them.
        untrained
            What it said before the training. Features are judged against these: those of a fresh
            network may be much alike already.

        Returns
        -------
        list of str
            Warnings, as of `check`.

        Raises
        ------
        Collapsed
            As `check` does.
        """
        if not self.enabled:
            return []
        spread, fresh, same = _spread(health), _spread(untrained), _spread(_SAME)
        bad = any(spread[name] < min(same[name], _LESS * fresh[name]) for name in same)
        seen = ", ".join(
            f"{name} {health[key]:.4g} (untrained {untrained[key]:.4g})"
            for key, name in zip(_SAME, ("mean cosine", "feature deviation", "RankMe"), strict=True)
        )
        return self._follow("features", step, bad, seen)

    def state(self) -> dict[str, Any]:
        """All that is remembered, as JSON can hold it."""
        return {
            "recent": [list(values) for values in self._recent],
            "since": dict(self._since),
            "warned": dict(self._warned),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._recent = [list(values) for values in state["recent"]]
        self._since = dict(state["since"])
        self._warned = dict(state["warned"])

    def _follow(self, kind: str, step: int, bad: bool, seen: str) -> list[str]:
        """Count how long a kind of collapse has been seen; warn once, and stop in the end."""
        if step < self.warm_up or not bad:
            self._since.pop(kind, None)
            self._warned.pop(kind, None)
            return []
        lasted = step - self._since.setdefault(kind, step)
        if lasted < self.patience:
            return []
        told = f"step {step}: {_KINDS[kind].meaning}, for {lasted} steps: {seen}"
        told += f"; {_KINDS[kind].advice}"
        if kind not in self._warned:
            self._warned[kind] = step
            return [told]
        # A resumed run looks again at the step it resumes from: it was no warning to itself.
        if lasted < _STOP * self.patience or step == self._warned[kind]:
            return []
        if step < self._last:
            raise Collapsed(f"stopped at {told}")
        return [told]


def _spread(health: Mapping[str, float]) -> dict[str, float]:
    """How far embeddings are from all being the same, which is 0 in each measure."""
    return {
        "mean_cosine": 1 - health["mean_cosine"],
        "feature_deviation": health["feature_deviation"],
        "rank_me": health["rank_me"] - 1,
    }
