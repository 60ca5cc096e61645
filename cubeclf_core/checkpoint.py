"""Files of weights that explain themselves: safetensors with a JSON header, never a pickle.

The header says what kind of file it is, its format version, the whole config of the network, the
normalisation and the provenance; see `Header`. Files are written beside their place and renamed.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cubeclf_core import zoo
from cubeclf_core.environment import environment
from cubeclf_core.errors import CheckpointError
from cubeclf_core.files import replacing
from cubeclf_core.network_configs import read_backbone_config
from cubeclf_core.normalise import NORMALISATION

FORMAT_VERSION = 1
BUNDLED = "model.safetensors"
"""The weights in a folder made for a hub, as hubs call them."""

_KEY = "cubeclf"


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a weights file says of itself.

    Attributes
    ----------
    kind
        "backbone", "classifier", or "training", what a run goes on from.
    backbone
        The config of the network: size, channels, cuboid, voxel size, patch.
    head
        The config of a classifier's head; empty for a backbone.
    training
        Settings and data that the weights come from.
    """

    kind: str
    backbone: dict[str, Any]
    head: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    normalisation: str = NORMALISATION
    provenance: dict[str, Any] = field(default_factory=lambda: provenance())
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Write as JSON."""
        return json.dumps(dataclasses.asdict(self), default=str)


def provenance() -> dict[str, Any]:
    """Versions, platform, command line and time."""
    return {**environment(), "created": datetime.now(UTC).isoformat(timespec="seconds")}


def save_checkpoint(path: Path, header: Header, tensors: dict[str, Tensor]) -> None:
    """Write weights and header to `path`, whole or not at all."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(path, contiguous, {_KEY: header.to_json()})


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write contiguous tensors to a safetensors file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.touch()
        usual = temporary.stat().st_mode
        save_file(tensors, temporary, metadata=metadata)
        temporary.chmod(usual)  # safetensors lets nobody but the owner read what it writes


def load_checkpoint(path: Path, kind: str) -> tuple[Header, dict[str, Tensor]]:
    """Read a weights file, or the one that a run's folder exported.

    Parameters
    ----------
    path
        A `.safetensors` file, a run's folder or a bundle.
    kind
        What is expected: "backbone" or "classifier".

    Raises
    ------
    CheckpointError
        If there is no such file, it is not ours, of another kind or normalisation, or of a newer
        version.
    """
    file = path
    if path.is_dir():
        bundled = path / BUNDLED
        file = bundled if bundled.is_file() else path / "exported" / f"{kind}.safetensors"
    if not file.is_file():
        come_with_us = "".join(f", or {name}" for name in zoo.known(kind))
        raise CheckpointError(
            f"no {kind} at {file}; expected a run's folder or a .safetensors file{come_with_us}"
        )
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            if _KEY not in metadata:
                raise CheckpointError(f"{file} was not written by cubeclf: its header says nothing")
            header = read_header(file, metadata[_KEY], kind)
            expected = read_backbone_config(header.backbone).normalisation
            if header.normalisation != expected:  # exported programs bring their own
                raise CheckpointError(
                    f"{file} was trained on input normalised by {header.normalisation!r}; this "
                    f"version of cubeclf normalises by {expected!r}: train it anew, or use the "
                    "version that it comes from"
                )
            return header, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is no safetensors file: {error}") from error


def read_header(file: Path, text: str, kind: str) -> Header:
    """Read a header from its JSON and check that it is one of `kind` that this version can use.

    Raises
    ------
    CheckpointError
        If it is not.
    """
    try:
        values = json.loads(text)
        version = values["format_version"]
        if version > FORMAT_VERSION:
            raise CheckpointError(
                f"{file} has format version {version}, newer than {FORMAT_VERSION}; update cubeclf"
            )
        header = Header(**values)
        read_backbone_config(header.backbone)
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{file} has a header that cannot be understood ({what})") from error
    if header.kind != kind:
        raise CheckpointError(f"{file} holds a {header.kind}, expected a {kind}")
    return header
