"""Classifiers as models of keras, which cellfinder loads; the header goes along in the archive.

Needs keras, which is imported where it is used, on the backend that cellfinder sets: torch.
"""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from importlib.util import find_spec
from math import log
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cubeclf_core.checkpoint import Header, read_header
from cubeclf_core.errors import CheckpointError, InputError
from cubeclf_core.files import replacing
from cubeclf_core.normalise import match_channels

SUFFIX = ".keras"
_HEADER = "cubeclf.json"
_CONFIG = "config.json"
_NEWER = {  # what keras 3.7, the oldest that cellfinder takes, does not know; all at its default
    *("quantization_config", "use_gate", "sliding_window"),
    *("renorm", "renorm_clipping", "renorm_momentum"),
}


def is_keras(path: Path) -> bool:
    """Whether a path is such a file, by its name, as keras itself tells."""
    return path.suffix == SUFFIX and path.is_file()


def import_keras() -> Any:
    """Import keras on torch.

    Raises
    ------
    InputError
        If it is not installed, or this process has it on something else.
    """
    if find_spec("keras") is None:
        raise InputError("a .keras file needs keras: pip install 'cubeclf[keras]'")
    os.environ["KERAS_BACKEND"] = "torch"  # looked at when keras is imported first
    import keras

    if (backend := keras.config.backend()) != "torch":
        raise InputError(f"keras runs on {backend} here; a .keras file of ours needs it on torch")
    return keras


def against_a_cell(threshold: float) -> float:
    """Say what to add to the logit of no cell, so that a probability of `threshold` becomes 1/2."""
    return log(threshold / (1 - threshold))


class KerasNetwork:
    """A model of keras that takes raw counts as our networks do, and returns log-probabilities.

    Parameters
    ----------
    model
        As `finetune.exporting.keras_network.build_model` makes it.
    against
        What was added to the logit of everything that is no cell, for the threshold; taken back
        here, so that the probabilities are those that the training calibrated.
    """

    def __init__(self, model: Any, against: float) -> None:
        self.model = model
        self.against = against
        self.channels = int(model.input_shape[-1])

    def __call__(self, cuboids: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b klass"]:
        """Log-probabilities of [no cell, cell], but for a constant that both share."""
        counts = match_channels(cuboids, self.channels).permute(0, 3, 4, 2, 1)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # all digits of float32
            found = self.model(counts)
        logs = torch.as_tensor(found).cpu().clamp_min(torch.finfo(torch.float32).tiny).log()
        return logs - torch.tensor([self.against, 0.0])


def save_keras(path: Path, model: Any, header: Header) -> None:
    """Write a model so that keras from 3.7 on loads it, whole or not at all.

    Parameters
    ----------
    path
        A ``.keras`` file.
    model
        Of stock layers of keras.
    header
        Goes along in the archive.
    """
    with replacing(path) as temporary:
        full = temporary.with_name(f".full-{temporary.name}")
        try:
            model.save(full)
            with zipfile.ZipFile(full) as source, zipfile.ZipFile(temporary, "w") as archive:
                for name in source.namelist():
                    content = source.read(name)
                    if name == _CONFIG:
                        content = json.dumps(_known_everywhere(json.loads(content))).encode()
                    archive.writestr(name, content)
                archive.writestr(_HEADER, header.to_json())
        finally:
            full.unlink(missing_ok=True)


def _known_everywhere(config: Any) -> Any:
    """Leave out of a model's description what an older keras does not know, or nobody needs."""
    if isinstance(config, dict):
        return {
            key: _known_everywhere(value)
            for key, value in config.items()
            if key not in _NEWER and not key.endswith("_initializer")  # weights come with it
        }
    return [_known_everywhere(part) for part in config] if isinstance(config, list) else config


def load_keras(path: Path) -> tuple[KerasNetwork, Header]:
    """Load an exported model, which is not trained any more, and its header.

    Raises
    ------
    CheckpointError
        If the file was not exported by cubeclf, or cannot be read.
    InputError
        If keras is not installed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if _HEADER not in archive.namelist():
                raise CheckpointError(
                    f"{path} was not exported by cubeclf: it has no {_HEADER}; --backbone takes "
                    "models that cellfinder trained"
                )
            header = read_header(path, archive.read(_HEADER).decode(), "classifier")
    except (OSError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is no .keras file: {error}") from error
    keras = import_keras()
    try:
        with warnings.catch_warnings():  # the optimizer has not begun, and keras tells of it
            warnings.filterwarnings("ignore", "Skipping variable loading", UserWarning)
            model = keras.models.load_model(path)
    except Exception as error:  # keras raises many kinds for a damaged archive
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be loaded by keras {keras.__version__}: {reason}"
        ) from error
    model.trainable = False
    return KerasNetwork(model, against_a_cell(header.training["threshold"])), header
