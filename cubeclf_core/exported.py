"""Classifiers as `torch.export` programs, which load without this package.

The file is torch's ``.pt2`` archive; the header of the checkpoint goes along as an extra file.
"""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cubeclf_core.checkpoint import Header, read_header
from cubeclf_core.errors import CheckpointError
from cubeclf_core.files import replacing

_HEADER = "cubeclf.json"


def save_exported(
    path: Path, network: nn.Module, example: torch.Tensor, dynamic: dict[int, Any], header: Header
) -> None:
    """Export a network and write it, whole or not at all.

    Parameters
    ----------
    path
        A ``.pt2`` file.
    network
        In evaluation mode, takes one tensor.
    example
        Input of at least two items.
    dynamic
        The axes of the input that may have any length, and what they are.
    header
        Goes along in the file.
    """
    program = torch.export.export(network, (example,), dynamic_shapes=(dynamic,))
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.export.save(program, file, extra_files={_HEADER: header.to_json()})


def is_exported(path: Path) -> bool:
    """Whether a file is a ``.pt2`` archive."""
    return path.is_file() and zipfile.is_zipfile(path)


def load_exported(path: Path) -> tuple[nn.Module, Header]:
    """Load an exported classifier and its header.

    Raises
    ------
    CheckpointError
        If the archive is not one of ours.
    """
    extra = {_HEADER: ""}
    chatter = logging.getLogger("torch.export")
    level = chatter.level
    chatter.setLevel(logging.CRITICAL)  # it logs tracebacks of what is raised anyway
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # torch raises many kinds for a foreign archive
        raise CheckpointError(f"{path} is no exported classifier, or a damaged one") from error
    finally:
        chatter.setLevel(level)
    if not extra[_HEADER]:
        raise CheckpointError(f"{path} was not exported by cubeclf: it has no {_HEADER}")
    return program.module(), read_header(path, extra[_HEADER], "classifier")
