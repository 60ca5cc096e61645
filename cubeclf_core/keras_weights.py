"""Weights of cellfinder's network from the files that keras writes, without keras.

Known are whole models (``.keras`` and the older ``.h5``) and weights alone (``.weights.h5`` and the
older ``.h5``, as cellfinder publishes them). Numbers are read with h5py and nothing else: nothing
is unpickled, and the description of a model that a file may bring along is not looked at.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cubeclf_core.errors import CheckpointError, InputError
from cubeclf_core.resnet import BLOCKS, RAW, PlaneNorm, ResNet3d, ResNet3dConfig

if TYPE_CHECKING:
    import h5py

    Layers = dict[str, list[h5py.Dataset]]  # name: weights in keras's order; layers as in the file

SUFFIXES = (".h5", ".hdf5", ".keras")
_IN_ZIP = "model.weights.h5"
_NUMBERED = re.compile(r"(?P<layer>(?:.*/)?(?P<kind>[^/]+?)(?:_(?P<number>\d+))?)/vars/\d+")
_NORM = ("weight", "bias", "running_mean", "running_var")  # in keras's order
_AXES = (4, 3, 2, 0, 1)  # keras's kernels are y x z in out


@dataclass(frozen=True)
class CellfinderWeights:
    """Weights of a network that cellfinder trained.

    Attributes
    ----------
    config
        The network that they fit: of the file's depth and channels, for raw counts.
    tensors
        The weights under the names of `ResNet3d`.
    head_weight
        Shape (2, feature): from what `ResNet3d.embed` returns to the logits of [no cell, cell].
    head_bias
        Shape (2,).
    """

    config: ResNet3dConfig
    tensors: dict[str, Tensor]
    head_weight: Tensor
    head_bias: Tensor


def load_cellfinder(path: str | Path) -> tuple[ResNet3d, Tensor, Tensor]:
    """Build the network that a file of cellfinder's holds.

    Parameters
    ----------
    path
        See `read_cellfinder`, which also says what is raised.

    Returns
    -------
    backbone : ResNet3d
        In evaluation mode, on the CPU. It takes raw counts: its config says no normalisation.
    head_weight, head_bias : Tensor
        Of the last layer, see `CellfinderWeights`; cellfinder takes the softmax of it.
    """
    weights = read_cellfinder(path)
    with torch.device("meta"):  # random weights would be thrown away
        backbone = ResNet3d(weights.config)
    backbone.load_state_dict(weights.tensors, assign=True)
    return backbone.eval().requires_grad_(), weights.head_weight, weights.head_bias


def read_cellfinder(path: str | Path) -> CellfinderWeights:
    """Read the weights of cellfinder's classifier; how deep it is, the layers tell.

    Parameters
    ----------
    path
        A file of keras: ``.keras``, ``.weights.h5`` or ``.h5``.

    Raises
    ------
    CheckpointError
        If it cannot be read, or is not of cellfinder's network for cuboids of 20 planes.
    InputError
        If h5py is not installed.

    Examples
    --------
    >>> read_cellfinder("no/such/file.h5")
    Traceback (most recent call last):
        ...
    cubeclf_core.errors.CheckpointError: no weights at no/such/file.h5; expected a file ...
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}; expected a file of keras's, .h5 or .keras")
    if find_spec("h5py") is None:
        raise InputError(f"{path} needs h5py to be read: pip install 'cubeclf[cellfinder]'")
    try:
        with _open(path) as file:
            return _Reader(path, _layers(file)).read()
    except CheckpointError:
        raise
    # what a damaged file makes of h5py and zipfile
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, zipfile.BadZipFile) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be read as a file of keras's, .h5 or .keras: {reason}"
        ) from error


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    import h5py

    if not zipfile.is_zipfile(path):
        with h5py.File(path, "r") as file:
            yield file
        return
    with zipfile.ZipFile(path) as archive:
        if _IN_ZIP not in archive.namelist():
            raise CheckpointError(f"{path} is a zip archive without {_IN_ZIP}; expected a .keras")
        content = io.BytesIO(archive.read(_IN_ZIP))
    with h5py.File(content, "r") as file:
        yield file


def _layers(file: h5py.File) -> Layers:
    """List the layers that have weights, in the order of the model."""
    import h5py

    datasets: dict[str, h5py.Dataset] = {}

    def collect(name: str, found: object) -> None:
        # weights that lie in another file are none of this one's
        if isinstance(found, h5py.Dataset) and not (found.external or found.is_virtual):
            datasets[name] = found

    file.visititems(collect)  # does not follow links either
    group = file.get("model_weights", file)
    if "layer_names" in group.attrs:
        return _named_layers(group, datasets)
    return _numbered_layers(file, datasets)


def _named_layers(group: h5py.Group, datasets: dict[str, h5py.Dataset]) -> Layers:
    """Layers of the older format: lists of names in the attributes."""
    layers: Layers = {}
    for layer in _texts(group.attrs["layer_names"]):
        path = f"{group.name}/{layer}".lstrip("/")
        weights = _texts(group[layer].attrs["weight_names"])
        if weights:
            layers[layer] = [datasets[f"{path}/{weight}"] for weight in weights]
    return layers


def _numbered_layers(file: h5py.File, datasets: dict[str, h5py.Dataset]) -> Layers:
    """Layers of the newer format: ``conv3d_7/vars/0``, with the layer's name as an attribute."""
    paths: dict[tuple[str, int], str] = {}
    for name in datasets:
        found = _NUMBERED.fullmatch(name)
        if found and not name.startswith("optimizer/"):
            paths[found["kind"], int(found["number"] or 0)] = found["layer"]
    layers: Layers = {}
    for key in sorted(paths):
        variables = file[f"{paths[key]}/vars"]
        name = str(variables.attrs.get("name", paths[key]))  # the first releases gave no names
        layers[name] = [
            datasets[f"{paths[key]}/vars/{i}"] for i in sorted(int(number) for number in variables)
        ]
    return layers


def _texts(names: Any) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


class _Reader:
    """Takes the weights of one file from its layers."""

    def __init__(self, path: Path, layers: Layers) -> None:
        self.path = path
        self.convolutions = {k: v for k, v in layers.items() if [len(w.shape) for w in v] == [5]}
        self.norms = {k: v for k, v in layers.items() if [len(w.shape) for w in v] == [1] * 4}
        self.dense = {k: v for k, v in layers.items() if [len(w.shape) for w in v] == [2, 1]}
        self.n_others = len(layers) - len(self.convolutions) - len(self.norms) - len(self.dense)

    def read(self) -> CellfinderWeights:
        """Recognise the network, and take each of its weights."""
        depth = self._depth()
        convolutions = self._in_order(self.convolutions, layer_names(depth, "conv"))
        norms = self._in_order(self.norms, layer_names(depth, "bn"))
        channels = next(iter(convolutions.values()))[0].shape[3]
        if channels not in (1, 2):
            raise CheckpointError(
                f"{self.path} takes {channels} channels; expected 1, the signal, or 2, with the "
                "background"
            )
        config = ResNet3dConfig(depth=depth, channels=channels, normalisation=RAW)
        with torch.device("meta"):
            backbone = ResNet3d(config)
        tensors: dict[str, Tensor] = {}
        layers = {nn.Conv3d: iter(convolutions.items()), PlaneNorm: iter(norms.items())}
        for name, module in backbone.named_modules():  # cellfinder's order too
            if type(module) not in layers:
                continue
            theirs, weights = next(layers[type(module)])
            for part, weight in zip(_NORM, weights, strict=False):  # a convolution has the first
                shape = tuple(getattr(module, part).shape)
                tensors[f"{name}.{part}"] = self._take(theirs, weight, shape)
        ((theirs, (kernel, bias)),) = self.dense.items()
        head_weight = self._take(theirs, kernel, (2, backbone.embedding_width))
        return CellfinderWeights(config, tensors, head_weight, self._take(theirs, bias, (2,)))

    def _depth(self) -> int:
        depths = {len(layer_names(depth, "conv")): depth for depth in BLOCKS}
        n = len(self.convolutions)
        if n in depths and (len(self.norms), len(self.dense), self.n_others) == (n, 1, 0):
            return depths[n]
        *fewer, most = map(str, depths)
        raise CheckpointError(
            f"{self.path} holds {n} 3D convolutions, {len(self.norms)} batch normalisations, "
            f"{len(self.dense)} dense layers and {self.n_others} others; expected cellfinder's "
            f"ResNet: {', '.join(fewer)} or {most} convolutions, a normalisation for each, and one "
            "dense layer"
        )

    def _in_order(self, layers: Layers, names: list[str]) -> Layers:
        """Order by cellfinder's names; where a file has others, its order is the model's."""
        return {name: layers[name] for name in names} if set(names) == set(layers) else layers

    def _take(self, layer: str, weight: h5py.Dataset, shape: tuple[int, ...]) -> Tensor:
        axes = _AXES if len(shape) == 5 else tuple(reversed(range(len(shape))))
        found = tuple(weight.shape[axis] for axis in axes)
        if found != shape or weight.dtype.kind != "f":
            expected = tuple(shape[axes.index(axis)] for axis in range(len(shape)))
            raise CheckpointError(
                f"{self.path}: layer {layer} has weights of shape {weight.shape} and type "
                f"{weight.dtype}; expected {expected} and floats, as in cellfinder's ResNet for "
                "cuboids of 20 × 50 × 50 voxels and two classes"
            )
        tensor = torch.from_numpy(weight[()]).permute(axes).float().contiguous()
        if not tensor.isfinite().all():
            raise CheckpointError(f"{self.path}: layer {layer} has weights that are not finite")
        return tensor


def layer_names(depth: int, layer: str) -> list[str]:
    """List what cellfinder calls its layers, from input to output.

    Parameters
    ----------
    depth
        One of `BLOCKS`.
    layer
        "conv" for its convolutions or "bn" for its batch normalisations.
    """
    names = ["conv1" if layer == "conv" else "conv1_bn"]
    for unit, n_blocks in enumerate(BLOCKS[depth], start=2):
        for block in range(n_blocks):
            parts = [f"{layer}_{letter}" for letter in ("abc" if depth >= 50 else "ab")]
            parts += [f"shortcut_{layer}"] * (block == 0)
            names += [f"resunit{unit}_block{block}_{part}" for part in parts]
    return names
