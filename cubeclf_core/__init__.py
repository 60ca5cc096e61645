"""What pretraining and fine-tuning share: volumes, cuboids, cells, networks, classifiers.

``from cubeclf_core import load_classifier`` is the way to use a classifier from Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cubeclf_core.classifier import load_classifier

__all__ = ["load_classifier"]


def __getattr__(name: str) -> Any:
    # Lazy, since commands import this package for their --help, which must not wait for torch.
    if name == "load_classifier":
        from cubeclf_core.classifier import load_classifier

        return load_classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
