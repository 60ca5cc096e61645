from __future__ import annotations

import io
import math
import re

import pytest
from rich.console import Console

from cubeclf_core import console as module
from cubeclf_core.console import progress


class Terminal:
    """A terminal that remembers what it was shown, and its clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.file = 0.0, io.StringIO()
        console = Console(
            file=self.file,
            force_terminal=True,
            color_system=None,
            width=160,
            get_time=lambda: self.now,
            _environ={"TERM": "xterm"},
        )
        monkeypatch.setattr(module, "console", console)
        for name in ("RANK", "SLURM_PROCID"):
            monkeypatch.delenv(name, raising=False)

    @property
    def last(self) -> str:
        """The last line that is not empty, without what moves the cursor."""
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.file.getvalue())
        return [line for line in re.split(r"[\r\n]", text) if line.strip()][-1]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(monkeypatch)


@pytest.mark.parametrize(
    ("seconds", "rate"), [(0.5, "2 steps/s"), (0.3125, "3.2 steps/s"), (1e-4, "10000 steps/s")]
)
def test_a_bar_shows_the_rate_and_the_time_left(
    terminal: Terminal, seconds: float, rate: str
) -> None:
    with progress("pretraining", 100, unit="steps") as advance:
        for _ in range(20):
            terminal.now += seconds
            advance(note="loss 0.5")
    assert "pretraining" in terminal.last
    assert "20/100" in terminal.last
    assert f" {rate} " in terminal.last
    left = math.ceil(80 * seconds)
    assert f"left 0:00:{left:02d} loss 0.5" in terminal.last


def test_a_resumed_bar_counts_the_new_steps_alone(terminal: Terminal) -> None:
    with progress("pretraining", 1000, unit="steps", done=900) as advance:
        assert "steps/s" not in terminal.last  # not known yet
        for _ in range(10):
            terminal.now += 0.5
            advance()
    assert "910/1000" in terminal.last
    assert " 2 steps/s " in terminal.last


def test_a_finished_bar_shows_the_rate_of_the_whole(terminal: Terminal) -> None:
    with progress("converting", 10, unit="units") as advance:
        for _ in range(10):
            terminal.now += 0.25
            advance()
    assert "10/10 4 units/s" in terminal.last
