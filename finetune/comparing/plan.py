"""What a comparison compares, read from one YAML file; nothing here imports torch.

::

    data:
      brains: [cohort.yaml]        # with cells; brains of one `group` are tested together
      cubes: []                    # cellfinder's training YAMLs
    channels: 1
    seeds: 3                       # of labels that are drawn, and of everything random
    own:                           # labels of one part of a group, tested on another part of it
      labels: [20, 50, 100]
      along: y
      learn_below: 0.45            # shares of the candidates' extent along that axis
      test_above: 0.625
    both:                          # these and all labels of other groups, tested alike
      labels: [20]
    transfer:                      # labels of all other groups, tested on one
      labels: [30, 100, all]
    rates: [0.3, 1, 3]             # factors of a contender's usual learning rate to try
    rates_labels: 100              # that they are tried with, for all budgets; its own if left out
    reference: pretrained, frozen  # what differences are taken to
    against: {ResNet-18: 100}      # that, with each budget, also against these with theirs
    pretraining:                   # settings of cubeclf-pretrain, once for each seed
      without 969: {brains: [695.yaml, 753.yaml], method: simclr, size: nano, steps: 300}
    contenders:
      contrast: {rule: contrast}
      density: {rule: density}
      forest: {rule: forest}
      the one we have: {classifier: runs/classifier}   # as it is; nothing is learned
      ResNet-18: {backbone: resnet18, train: {freeze: false}, seeds: 1, own: [100]}
      from scratch: {backbone: "scratch:vit-nano", train: {freeze: false}}
      pretrained, frozen: {backbone: {969: without 969, 695: runs/b, 753: runs/b}}

Paths are relative to the file. `train` holds settings of cubeclf-finetune. A contender's backbone
is a name or path as `cubeclf-finetune --backbone` takes it or the name of a pretraining, one for
all groups or one for each that is tested; ``{seed}`` in it is the number of the seed. A contender
may have fewer seeds and budgets, and rates of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_type_hints

import yaml

from cubeclf_core.errors import InputError
from cubeclf_core.locations import locate, same_name
from finetune.config import FinetuneConfig

ALL = 0
"""A budget that is no number: all labels there are."""

PROTOCOLS = ("own", "both", "transfer")
"""Labels of the tested group, far from what is tested; these and all of other groups; of others."""

Rule = Literal["contrast", "density", "forest", "classifier"]
_RULES = ("contrast", "density", "forest")
AS_IT_IS: Rule = "classifier"
"""The rule of who asks a classifier that has been trained already."""

UNSEEDED = ("contrast", "density", AS_IT_IS)
"""Rules that learn nothing, so that all seeds and budgets are alike."""

_NOT_TRAINING = {"backbone", "out", "brains", "cubes", "test", "labels", "channels", "seed"}
_NOT_TRAINING |= {"voxel_size_um", "resume", "overwrite", "threshold", "classes"}
_NOT_TRAINING |= {"rate_factor"}


@dataclass(frozen=True)
class Own:
    """Labels of one part of a group, tested on another part.

    Attributes
    ----------
    labels
        Budgets.
    axis
        0 z, 1 y, 2 x.
    learn_below, test_above
        Shares of the candidates' extent along the axis.
    """

    labels: tuple[int, ...]
    axis: int = 1
    learn_below: float = 0.45
    test_above: float = 0.625


@dataclass(frozen=True)
class Contender:
    """What takes part.

    Attributes
    ----------
    name
        In tables.
    rule
        A rule that trains no network, or None.
    backbone
        By the group that is tested, "" for any other; of the rule `AS_IT_IS`, the classifier.
    train
        Settings of `cubeclf-finetune`.
    seeds
        Of them, so many.
    budgets
        By protocol, where not all are wanted.
    rates
        Factors of its usual learning rate, of which the best is chosen.
    channels
        Of a network that has none of its own yet.
    """

    name: str
    rule: Rule | None
    backbone: Mapping[str, str]
    train: Mapping[str, Any]
    seeds: int
    budgets: Mapping[str, tuple[int, ...]]
    rates: tuple[float, ...]
    channels: Literal[1, 2]

    @property
    def trains(self) -> bool:
        """Whether anything is trained step by step, which takes long."""
        return self.rule is None and not self.settings("any", 0).fits_at_once

    @property
    def chooses_rate(self) -> bool:
        """Whether several learning rates are tried."""
        return self.trains and len(self.rates) > 1

    @property
    def weights(self) -> str:
        """What kind of weights `backbone` names, in words."""
        return "classifier" if self.rule == AS_IT_IS else "backbone"

    def backbone_for(self, group: str) -> str:
        """Name of the backbone, or classifier, where a group is tested.

        Raises
        ------
        InputError
            If there is none.
        """
        found = self.backbone.get(group, self.backbone.get(""))
        if found is None:
            raise InputError(
                f"contender {self.name} has no {self.weights} for the group {group}; "
                f"found some for {', '.join(self.backbone)}"
            )
        return found

    def settings(self, backbone: str, seed: int, **more: Any) -> FinetuneConfig:
        """Settings of `cubeclf-finetune`; its labels and its folder are never used."""
        nowhere = Path("unused")
        given = {"backbone": backbone, "out": nowhere, "brains": (nowhere,), "seed": seed}
        return FinetuneConfig(**{**given, "channels": self.channels, **self.train, **more})


@dataclass(frozen=True)
class Plan:
    """A whole comparison; see the module.

    Attributes
    ----------
    file, text
        It was read from, and what that said.
    brains, cubes
        Files of labels.
    voxel_size_um
        z y x, of brains whose files do not say.
    channels
        1 signal, 2 signal and background.
    seeds
        How many.
    own
        None if it is not asked for.
    both, transfer
        Budgets.
    rates_labels
        Budget that learning rates are tried with; None for each row's own.
    reference
        Name of a contender.
    against
        Budgets by the names of contenders, whom the reference is held against at all of its own.
    pretraining
        Settings by name.
    contenders
        In the order of the file.
    """

    file: Path
    text: str
    brains: tuple[Path, ...]
    cubes: tuple[Path, ...]
    voxel_size_um: tuple[float, float, float] | None
    channels: Literal[1, 2]
    seeds: int
    own: Own | None
    both: tuple[int, ...]
    transfer: tuple[int, ...]
    rates_labels: int | None
    reference: str
    against: Mapping[str, int]
    pretraining: Mapping[str, Mapping[str, Any]]
    contenders: tuple[Contender, ...]

    @property
    def rows(self) -> list[tuple[str, int]]:
        """All protocols with all budgets, small ones first."""
        return [
            (protocol, n)
            for protocol, budgets in _asked(self.own, self.both, self.transfer).items()
            for n in sorted(budgets, key=lambda n: math.inf if n == ALL else n)
        ]

    def rows_of(self, contender: Contender) -> list[tuple[str, int]]:
        """Those that a contender takes part in."""
        wanted = contender.budgets
        return [row for row in self.rows if row[0] not in wanted or row[1] in wanted[row[0]]]

    def only(self, names: Sequence[str]) -> Plan:
        """Leave some contenders; all, if none is named."""
        if not names:
            return self
        known = [contender.name for contender in self.contenders]
        if unknown := [name for name in names if name not in known]:
            raise InputError(f"no contender {unknown[0]!r} in {self.file}; found {_list(known)}")
        kept = tuple(c for c in self.contenders if c.name in names)
        reference = self.reference if self.reference in names else _first_network(kept)
        used = {name for contender in kept for name in contender.backbone.values()}
        pretraining = {name: own for name, own in self.pretraining.items() if name in used}
        return dataclasses.replace(
            self, contenders=kept, reference=reference, pretraining=pretraining
        )


def _first_network(contenders: Sequence[Contender]) -> str:
    """Name the first that has a network, or else the first."""
    return next((c for c in contenders if c.rule is None), contenders[0]).name


def _asked(
    own: Own | None, both: tuple[int, ...], transfer: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Budgets by protocol."""
    found = (own.labels if own else (), both, transfer)
    return dict(zip(PROTOCOLS, found, strict=True))


def common_row(plan: Plan, protocol: str = "") -> tuple[str, int]:
    """Choose what contenders are compared in: what most take part in, the last with a number.

    Parameters
    ----------
    plan
        Of the comparison.
    protocol
        Of the row, if it is to be of a certain one.
    """
    taken = [row for contender in plan.contenders for row in plan.rows_of(contender)]
    rows = [row for row in plan.rows if protocol in ("", row[0])]
    last = {row: i for i, row in enumerate(rows)}
    return max(rows, key=lambda row: (taken.count(row), row[1] != ALL, last[row]))


def row_name(row: tuple[str, int]) -> str:
    """Write a protocol and a budget."""
    return f"{row[0]} {budget_name(row[1])}"


def other_name(contender: str, own: int, budget: int) -> str:
    """Name whom the reference is compared with, and its own budget if that is another."""
    return contender if own == budget else f"{contender}, {budget_name(own)} labels"


def budget_name(n: int) -> str:
    """Write a budget."""
    return "all" if n == ALL else str(n)


def read_plan(file: Path) -> Plan:
    """Read a comparison's YAML file and check all that can be checked without data.

    Raises
    ------
    InputError
        If it cannot be understood.
    """
    try:
        text = file.read_text(encoding="utf-8")
        given = yaml.load(text, _Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:  # a date may be none
        raise InputError(f"{file} cannot be read as YAML: {_one_line(error)}") from error
    reader = _Reader(file)
    top = reader.mapping("the file", given, (*_KEYS, *_LAST_KEYS))
    data = reader.mapping("data", top.get("data"), ("brains", "cubes", "voxel_size_um"))
    brains = reader.paths("data.brains", data.get("brains", []))
    cubes = reader.paths("data.cubes", data.get("cubes", []))
    reader.must(bool(brains or cubes), "data", "empty", "brains files or training YAMLs")
    seeds = reader.whole("seeds", top.get("seeds", 3), least=1)
    channels = top.get("channels", 2)
    reader.must(channels in (1, 2), "channels", channels, "1 or 2")
    own = None if top.get("own") is None else reader.own(top["own"])
    both, transfer = (reader.labels(key, top.get(key)) for key in ("both", "transfer"))
    reader.must(bool(own or not both), "own", "missing", "what `both` is tested on")
    reader.must(bool(own or transfer), "own and transfer", "missing", "one of them, or both")
    pretraining = {
        str(name): reader.pretraining(str(name), settings)
        for name, settings in reader.mapping("pretraining", top.get("pretraining", {})).items()
    }
    rates = reader.rates("rates", top.get("rates", [1]))
    rates_labels = reader.budget("rates_labels", top.get("rates_labels"))
    named = reader.mapping("contenders", top.get("contenders"))
    reader.must(bool(named), "contenders", "empty", "at least one")
    contenders = tuple(
        reader.contender(str(name), settings, seeds, rates, channels, pretraining)
        for name, settings in named.items()
    )
    names = [contender.name for contender in contenders]
    reference = str(top.get("reference", _first_network(contenders)))
    reader.must(reference in names, "reference", reference, f"one of {_list(names)}")
    some_choose = rates_labels is None or any(c.chooses_rate for c in contenders)
    why = "nothing: no contender that is trained has several rates"
    reader.must(some_choose, "rates_labels", "given", why)
    against = reader.against(top.get("against", {}), contenders, reference)
    asked = _asked(own, both, transfer)
    for contender in contenders:
        for protocol, budgets in contender.budgets.items():
            where, wanted = f"contenders.{contender.name}.{protocol}", asked[protocol]
            found = ", ".join(map(budget_name, budgets))
            some = f"some of {', '.join(map(budget_name, wanted)) or 'none'}, as the plan has them"
            reader.must(set(budgets) <= set(wanted), where, found, some)
        left = [contender.budgets.get(protocol, asked[protocol]) for protocol in asked]
        where = f"contenders.{contender.name}"
        reader.must(any(left), where, "without labels", f"some budgets of {_list(PROTOCOLS)}")
    plan = Plan(
        file=file,
        text=text,
        brains=brains,
        cubes=cubes,
        voxel_size_um=reader.size("data.voxel_size_um", data.get("voxel_size_um")),
        channels=channels,
        seeds=seeds,
        own=own,
        both=both,
        transfer=transfer,
        rates_labels=rates_labels,
        reference=reference,
        against=against,
        pretraining=pretraining,
        contenders=contenders,
    )
    for contender in contenders:
        if (budget := against.get(contender.name)) is not None:
            tried = list(dict.fromkeys(n for _, n in plan.rows_of(contender)))
            its_own = f"one of its own, {_list([budget_name(n) for n in tried])}"
            where = f"against.{contender.name}"
            reader.must(budget in tried, where, budget_name(budget), its_own)
    return plan


_TYPES = get_type_hints(FinetuneConfig)  # without the annotations of its command line
_WORDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a name",
    NoneType: "null",
}
_KEYS = ("data", "channels", "seeds", *PROTOCOLS, "rates", "rates_labels")
_LAST_KEYS = ("reference", "against", "pretraining", "contenders")


@dataclass(frozen=True)
class _Reader:
    """Checks what a file says, and names the place where it is wrong."""

    file: Path

    def must(self, holds: bool, where: str, found: object, expected: str) -> None:
        if not holds:
            raise InputError(f"{self.file}: {where} is {found}, expected {expected}")

    def mapping(self, where: str, given: object, keys: Sequence[str] = ()) -> dict[Any, Any]:
        self.must(isinstance(given, dict), where, given, "a mapping")
        assert isinstance(given, dict)
        for key in given if keys else ():
            if key not in keys:
                raise InputError(
                    f"{self.file}: {where} has {key!r}; expected some of {_list(keys)}"
                )
        return given

    def whole(self, where: str, given: object, *, least: int) -> int:
        fits = type(given) is int and given >= least
        self.must(fits, where, given, f"a whole number, at least {least}")
        assert isinstance(given, int)
        return given

    def paths(self, where: str, given: object) -> tuple[Path, ...]:
        fits = isinstance(given, list) and all(isinstance(path, str) for path in given)
        self.must(fits, where, given, "a list of files")
        assert isinstance(given, list)
        return tuple(self.file.parent / path for path in given)

    def size(self, where: str, given: object) -> tuple[float, float, float] | None:
        if given is None:
            return None
        fits = isinstance(given, list) and len(given) == 3 and all(map(_positive, given))
        self.must(fits, where, given, "three numbers, z y x")
        assert isinstance(given, list)
        z, y, x = map(float, given)
        return z, y, x

    def budgets(self, where: str, given: object, least: int = 1) -> tuple[int, ...]:
        fits = isinstance(given, list) and len(given) >= least and all(map(_is_budget, given))
        self.must(fits, where, given, "a list of numbers from 4 on, or all")
        assert isinstance(given, list)
        self.must(len(set(given)) == len(given), where, given, "each once")
        return tuple(map(_number, given))

    def budget(self, where: str, given: object) -> int | None:
        """Read a budget that may be left out."""
        if given is None:
            return None
        self.must(_is_budget(given), where, given, "a number from 4 on, or all")
        return _number(given)

    def against(
        self, given: object, contenders: Sequence[Contender], reference: str
    ) -> dict[str, int]:
        """Read budgets by the names of contenders that learn; the reference has to, too."""
        found = {}
        learn = [c.name for c in contenders if c.rule not in UNSEEDED]
        known = [name for name in learn if name != reference]
        for name, budget in self.mapping("against", given).items():
            nothing = f"nothing: the reference, {reference}, learns nothing"
            self.must(reference in learn, "against", name, nothing)
            other = f"one that learns and is not the reference: {_list(known)}"
            self.must(str(name) in known, "against", name, other)
            self.must(_is_budget(budget), f"against.{name}", budget, "a number from 4 on, or all")
            found[str(name)] = _number(budget)
        return found

    def labels(self, where: str, given: object) -> tuple[int, ...]:
        """Read budgets of a protocol that has nothing else to say."""
        if given is None:
            return ()
        return self.budgets(
            f"{where}.labels", self.mapping(where, given, ("labels",)).get("labels")
        )

    def rates(self, where: str, given: object) -> tuple[float, ...]:
        fits = isinstance(given, list) and given and all(map(_positive, given))
        self.must(bool(fits), where, given, "a list of numbers above 0")
        assert isinstance(given, list)
        self.must(len(set(given)) == len(given), where, given, "each once")
        return tuple(map(float, given))

    def own(self, given: object) -> Own:
        part = self.mapping("own", given, ("labels", "along", "learn_below", "test_above"))
        along = part.get("along", "y")
        self.must(along in ("z", "y", "x"), "own.along", along, "z, y or x")
        below, above = part.get("learn_below", 0.45), part.get("test_above", 0.625)
        fits = _positive(below) and _positive(above) and below < above < 1
        self.must(fits, "own", f"{below} to {above}", "0 < learn_below < test_above < 1")
        labels = self.budgets("own.labels", part.get("labels"))
        return Own(labels, "zyx".index(along), float(below), float(above))

    def pretraining(self, name: str, given: object) -> dict[str, Any]:
        settings = dict(self.mapping(f"pretraining.{name}", given))
        for key in ("seed", "out", "resume", "overwrite"):
            self.must(key not in settings, f"pretraining.{name}.{key}", "given", "nothing")
        brains = settings.get("brains")
        fits = isinstance(brains, list) and all(isinstance(brain, str) for brain in brains)
        self.must(fits, f"pretraining.{name}.brains", brains, "a list of brains")
        assert isinstance(brains, list)
        settings["brains"] = [same_name(locate(brain, self.file.parent)) for brain in brains]
        for key in ("init", "probe"):
            if isinstance(value := settings.get(key), str):
                settings[key] = self._located(value, {})
        if (probe := settings.get("probe")) is not None:
            there = isinstance(probe, str) and Path(probe).exists()
            self.must(there, f"pretraining.{name}.probe", probe, "a file that is there")
        return settings

    def contender(
        self,
        name: str,
        given: object,
        seeds: int,
        rates: tuple[float, ...],
        channels: Literal[1, 2],
        pretraining: Mapping[str, Any],
    ) -> Contender:
        where = f"contenders.{name}"
        keys = ("rule", "backbone", "classifier", "train", "seeds", *PROTOCOLS, "rates")
        part = self.mapping(where, given, keys)
        kinds = [kind for kind in ("rule", "backbone", "classifier") if part.get(kind) is not None]
        one_kind = "either a rule, a backbone or a classifier"
        self.must(len(kinds) == 1, where, "not clear", one_kind)
        rule = part.get("rule")
        self.must(rule is None or rule in _RULES, f"{where}.rule", rule, f"one of {_list(_RULES)}")
        if kinds == ["classifier"]:
            rule = AS_IT_IS
        named = {}
        if kinds != ["rule"]:
            named = self.weights(f"{where}.{kinds[0]}", part[kinds[0]])
        if rule == AS_IT_IS:
            pretrained = _list([value for value in named.values() if value in pretraining])
            told = f"the pretraining {pretrained}"
            self.must(not pretrained, f"{where}.classifier", told, "a classifier")
        train = self.mapping(f"{where}.train", part.get("train", {}))
        known = sorted(_TYPES.keys() - _NOT_TRAINING)
        for key in train:
            self.must(key in known, f"{where}.train", f"with {key}", f"some of {_list(known)}")
        train = {key: self.typed(f"{where}.train.{key}", train[key], key) for key in train}
        nothing = "nothing: it learns nothing"
        self.must(rule not in UNSEEDED or "seeds" not in part, f"{where}.seeds", "given", nothing)
        own_seeds = self.whole(f"{where}.seeds", part.get("seeds", seeds), least=1)
        most = f"at most {seeds}, as the plan has it"
        self.must(own_seeds <= seeds, f"{where}.seeds", own_seeds, most)
        found = Contender(
            name=name,
            rule=rule,
            backbone={key: self._located(value, pretraining) for key, value in named.items()},
            train=train,
            seeds=1 if rule in UNSEEDED else own_seeds,
            budgets={
                protocol: self.budgets(f"{where}.{protocol}", part[protocol], least=0)
                for protocol in PROTOCOLS
                if protocol in part
            },
            rates=self.rates(f"{where}.rates", part["rates"]) if "rates" in part else rates,
            channels=channels,
        )
        try:
            found.settings("any", 0)
        except (InputError, TypeError) as error:
            raise InputError(f"{self.file}: {where}.train: {error}") from error
        # What has no effect is more likely meant otherwise than meant so.
        why = "a head is fitted at once" if rule is None else f"a {kinds[0]} has none"
        nothing = f"nothing: {why}"
        self.must(rule is None or not train, f"{where}.train", "given", nothing)
        self.must(found.trains or "rates" not in part, f"{where}.rates", "given", nothing)
        self.must(found.trains or "folds" not in train, f"{where}.train.folds", "given", nothing)
        folds = train.get("folds")
        one = "0, or nothing: one part is held out"
        self.must(folds in (None, 0), f"{where}.train.folds", folds, one)
        return found

    def typed(self, where: str, given: object, key: str) -> object:
        """Check a setting's type, which a dataclass does not; 1e-3 is a text in YAML."""
        kinds = get_args(_TYPES[key]) or (_TYPES[key],)
        for kind in kinds:
            if kind is float and type(given) in (int, float, str):
                with contextlib.suppress(ValueError):
                    return float(given) if isinstance(given, str) else given
            elif given == kind or type(given) is kind:  # one of a Literal's texts, or of its type
                return given
        expected = " or ".join(str(_WORDS.get(kind, kind)) for kind in kinds)
        raise InputError(f"{self.file}: {where} is {given}, expected {expected}")

    def weights(self, where: str, given: object) -> dict[str, str]:
        """Read names of weights by group; one name is for all of them."""
        if isinstance(given, str):
            return {"": given}
        fits = isinstance(given, dict) and bool(given)
        self.must(fits, where, given, "a name, or a mapping of groups to names")
        assert isinstance(given, dict)
        for key, value in given.items():
            self.must(isinstance(value, str), f"{where}.{key}", value, "a name")
        return {str(key): value for key, value in given.items()}

    def _located(self, name: str, pretraining: Mapping[str, Any]) -> str:
        """Find what is a path beside the plan or from here, and leave other names as they are."""
        for folder in (self.file.parent, Path()):
            if name not in pretraining and (folder / name.replace("{seed}", "0")).exists():
                return str((folder / name).absolute())
        return name


class _Loader(yaml.SafeLoader):
    """Refuses what is there twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Make a mapping of a node."""
        known = set[str]()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in known:
                    told = f"{key.value!r} is there twice"
                    raise yaml.constructor.ConstructorError(None, None, told, key.start_mark)
                known.add(key.value)
        return super().construct_mapping(node, deep)


def _is_budget(value: object) -> bool:
    return value == "all" or (type(value) is int and value >= 4)


def _number(budget: Any) -> int:
    return ALL if budget == "all" else int(budget)


def _positive(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(float(value)) and float(value) > 0  # type: ignore[arg-type]


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(str, names))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
