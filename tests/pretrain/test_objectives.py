from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
import torch
import yaml
from torch import nn

from cubeclf_core.draws import Draws
from cubeclf_core.errors import InputError
from cubeclf_core.normalise import normalise
from pretrain.objective import Objective
from pretrain.objectives import OBJECTIVES, load_objective, make_settings

# SimCLR compares cuboids with each other, and under accumulation with those of a part.
ADDS_UP = {"mae": {}, "dino": {"koleo_weight": 0}, "dinov2": {"koleo_weight": 0}}


@dataclass(frozen=True, kw_only=True)
class ToySettings:
    weight: float = 1.0
    times: int = 1
    kind: Literal["plain", "fancy"] = "plain"
    pair: tuple[float, int] = (0.5, 2)
    flag: bool = False
    name: str = "toy"


class Toy(Objective):
    """Tells the deviation of raw counts from a normalised cuboid."""

    Settings = ToySettings

    def __init__(self, backbone, settings, augment) -> None:
        super().__init__(backbone, settings, augment)
        self.backbone = backbone
        self.canvas_shape = backbone.config.cuboid_shape
        self.guess = nn.Linear(backbone.embed_dim, 1)
        self.weight = settings.weight

    @property
    def exported(self):
        return self.backbone

    def forward(self, cuboids, draws, progress):
        wanted = cuboids.std(dim=(1, 2, 3, 4)) / 100
        token = self.backbone(normalise(cuboids))[:, 0] / 10
        error = (self.guess(token)[:, 0] - wanted).square()
        return self.weight * error.mean(), {"per_cuboid": error.detach()}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("a_toy_objective")
    module.Toy = Toy
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(OBJECTIVES, "toy", "a_toy_objective:Toy")


def test_names_are_known_without_torch() -> None:
    code = "import pretrain.objectives, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
    with pytest.raises(InputError, match="no objective 'moco'; expected one of mae, dino, dino"):
        load_objective("moco")


def test_settings_are_read_from_yaml() -> None:
    made = make_settings(
        Toy, {"weight": "1e-3", "times": "3", "kind": "fancy", "pair": [1, 7], "flag": "true"}
    )
    assert made == ToySettings(weight=1e-3, times=3, kind="fancy", pair=(1.0, 7), flag=True)
    assert isinstance(made.pair[0], float)
    assert make_settings(Toy, {"pair": "[0.25, 1]", "name": "7"}).pair == (0.25, 1)
    for name in OBJECTIVES:
        kind = load_objective(name)
        assert make_settings(kind, {}) == kind.Settings()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"wieght": 1}, "no setting toy.wieght; expected one of weight, times, kind, pair, flag"),
        ({"weight": "much"}, "toy.weight is 'much', expected a number"),
        ({"weight": True}, "toy.weight is True, expected a number"),
        ({"times": 1.5}, "toy.times is 1.5, expected a whole number"),
        ({"kind": "odd"}, "toy.kind is 'odd', expected plain or fancy"),
        ({"pair": [1]}, r"toy.pair is \[1\], expected 2 numbers"),
        ({"pair": [1, 1.5]}, "toy.pair is 1.5, expected a whole number"),
        ({"flag": 1}, "toy.flag is 1, expected true or false"),
        ({"flag": "{"}, "toy.flag is '{', expected true or false"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_settings(Toy, values)


def step(model: Objective, cuboids: torch.Tensor, number: int, parts: int = 1) -> float:
    """Take one step of plain gradient descent, over an accumulated batch; returns its loss."""
    model.zero_grad()
    total = 0.0
    items = torch.arange(len(cuboids))
    for part, rows in zip(cuboids.chunk(parts), items.chunk(parts), strict=True):
        loss, told = model(part, Draws(0, number, rows.tolist()), number / 4)
        (loss / parts).backward()
        total += float(loss.detach()) / parts
        assert told["per_cuboid"].shape == (len(part),)
    model.before_update(number / 4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.05 * parameter.grad
    model.after_update(number / 4)
    return total


@pytest.mark.usefixtures("toy")
def test_a_file_and_a_line_make_an_objective(objective, counts) -> None:
    model = objective("toy", weight="2")
    cuboids = counts(4, model.canvas_shape)
    losses = [step(model, cuboids, 0) for _ in range(10)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_seed_gives_one_loss(objective, counts, name: str) -> None:
    losses = []
    for number in (0, 0, 1):
        model = objective(name)
        losses.append(step(model, counts(2, model.canvas_shape), number))
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("name", ADDS_UP)
def test_parts_of_a_batch_make_the_whole(objective, counts, name: str) -> None:
    """Also at the first step, before there are centres, and with channels left out."""
    whole, cut = (objective(name, **ADDS_UP[name]) for _ in range(2))
    start = {key: value.clone() for key, value in whole.state_dict().items()}
    for number in range(3):
        cuboids = counts(8, whole.canvas_shape, seed=number)
        expected = step(whole, cuboids, number)
        assert step(cut, cuboids, number, parts=2) == pytest.approx(expected, rel=1e-5)
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(cut.state_dict()[key], value, rtol=1e-5, atol=1e-5)
    moved = [key for key, value in whole.state_dict().items() if not value.equal(start[key])]
    assert any("backbone" in key for key in moved)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_state_dict_holds_everything(objective, counts, name: str) -> None:
    old = objective(name)
    for number in range(2):
        step(old, counts(4, old.canvas_shape, seed=number), number)
    new = objective(name)
    for parameter in new.parameters():
        parameter.data.normal_()
    new.load_state_dict(old.state_dict())
    cuboids = counts(4, old.canvas_shape, seed=2)
    assert step(old, cuboids, 2) == step(new, cuboids, 2)
    for key, value in old.state_dict().items():
        assert new.state_dict()[key].equal(value)


@pytest.mark.parametrize("method", OBJECTIVES)
def test_the_document_has_all_settings_with_their_defaults(method: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "pretraining.md").read_text(encoding="utf-8")
    told = text[text.index("its settings and what they are by default") :]

    def written(name: str) -> dict[str, object]:
        (line,) = re.findall(rf"^\| `{name}` \| (.*) \|$", told, re.MULTILINE)
        pairs = re.findall(r"`(\w+)` (\[[^\]]*\]|[\w.]+)", line)
        return {key: yaml.safe_load(value) for key, value in pairs}

    found = (written("dino") if method == "dinov2" else {}) | written(method)
    has = asdict(make_settings(load_objective(method), {}))
    assert found == {k: list(v) if isinstance(v, tuple) else v for k, v in has.items()}
