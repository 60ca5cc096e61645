"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_NOT_IMPORT = {
    "cubeclf_core": {"pretrain", "finetune"},
    "pretrain": {"finetune"},
    "finetune": {"pretrain"},
}
COMMANDS = sorted(
    entry.name
    for entry in entry_points(group="console_scripts")
    if entry.name.startswith("cubeclf-")
)


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("package", MAY_NOT_IMPORT)
def test_imports_go_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(f.relative_to(ROOT)): imported(f) & MAY_NOT_IMPORT[package] for f in files}
    assert not {file: names for file, names in wrong.items() if names}


def test_all_commands_are_installed() -> None:
    names = ("simulate", "convert", "pretrain", "finetune", "export", "classify")
    assert set(COMMANDS) >= {f"cubeclf-{name}" for name in names}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_answers_without_torch(name: str) -> None:
    code = f"""
import sys
from importlib.metadata import entry_points
sys.argv = [{name!r}, "--help"]
try:
    next(iter(entry_points(group="console_scripts", name={name!r}))).load()()
except SystemExit as stop:
    assert not stop.code, stop.code
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert f"Usage: {name}" in done.stdout
    assert "--out" in done.stdout
