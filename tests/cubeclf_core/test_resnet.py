from __future__ import annotations

import copy
import dataclasses
import importlib.util
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cubeclf_core import keras_weights
from cubeclf_core.errors import CheckpointError, InputError
from cubeclf_core.keras_weights import layer_names, load_cellfinder, read_cellfinder
from cubeclf_core.resnet import BLOCKS, PlaneNorm, ResNet3d, ResNet3dConfig

Shapes = dict[str, list[tuple[int, ...]]]
FILL = 0.25


def build() -> ResNet3d:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ResNet3d(ResNet3dConfig())


def cuboids(n: int = 2, channels: int = 2) -> torch.Tensor:
    return torch.randn(n, channels, 20, 50, 50, generator=torch.Generator().manual_seed(0))


def keras_shapes(depth: int = 18, channels: int = 2) -> Shapes:
    """The weights of cellfinder's network by layer, as keras stores them."""
    planes = dict(zip("12345", (12, 6, 3, 2, 1), strict=True))
    wide = 4 if depth >= 50 else 1
    shapes: Shapes = {"conv1": [(7, 7, 3, channels, 64)], "conv1_bn": [(12,)] * 4}
    entering = 64
    for name in layer_names(depth, "conv")[1:]:
        unit, part = int(name[len("resunit")]), name.rpartition("conv")[2]
        width = 64 << (unit - 2)
        first = "_block0_" in name
        if part == "_a":
            size, c, out = (1 if wide == 4 else 3), entering, width
            before = entering
            entering = wide * width
        elif part == "_b":
            size, c, out = 3, width, width
        elif part == "_c":
            size, c, out = 1, width, wide * width
        else:
            assert first
            size, c, out = 1, before, wide * width
        shapes[name] = [(size, size, size, c, out)]
        shapes[name.replace("conv", "bn")] = [(planes[str(unit)],)] * 4
    return {**shapes, "fully_connected": [(512 * wide, 2), (2,)]}


def variables(shapes: list[tuple[int, ...]]) -> list[str]:
    norm = ["gamma", "beta", "moving_mean", "moving_variance"]
    return norm if len(shapes) == 4 else ["kernel", "bias"][: len(shapes)]


def put(group: h5py.Group, name: str, shape: tuple[int, ...], fill: float = FILL) -> None:
    group.create_dataset(name, shape, "f4", fillvalue=fill)  # takes no space in the file


def write_older(path: Path, shapes: Shapes, around: str = "/") -> Path:
    """As keras 2 with tensorflow wrote weights, which is how cellfinder's are published."""
    with h5py.File(path, "w") as file:
        group = file.require_group(around)
        group.attrs["layer_names"] = [name.encode() for name in ["input_1", *shapes]]
        group.create_group("input_1").attrs["weight_names"] = []
        for layer, of_layer in shapes.items():
            names = [f"{layer}/{variable}:0" for variable in variables(of_layer)]
            group.create_group(layer).attrs["weight_names"] = [name.encode() for name in names]
            for name, shape in zip(names, of_layer, strict=True):
                put(group[layer], name, shape)
    return path


def write_newer(path: Path, shapes: Shapes, around: str = "layers", names: bool = False) -> Path:
    """As keras 3 writes weights; its first releases did not name the layers."""
    kinds = {1: "conv3d", 4: "batch_normalization", 2: "dense"}
    seen: dict[str, int] = {}
    with h5py.File(path, "w") as file:
        for layer, of_layer in shapes.items():
            kind = kinds[len(of_layer)]
            number = seen[kind] = seen.get(kind, -1) + 1
            group = file.create_group(f"{around}/{kind}{f'_{number}' if number else ''}/vars")
            if names:
                group.attrs["name"] = layer
            for i, shape in enumerate(of_layer):
                put(group, str(i), shape)
        for i in range(4):  # an optimizer's moments look like weights
            put(file.require_group("optimizer/vars"), str(i), (12,))
        file.create_group("vars")
    return path


def write_zip(path: Path, shapes: Shapes) -> Path:
    weights = write_newer(path.with_suffix(".inner"), shapes)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps({"class_name": "Lambda"}))
        archive.write(weights, "model.weights.h5")
    return path


def test_the_config_survives_json_and_refuses_what_it_cannot_be() -> None:
    config = ResNet3dConfig(depth=50, channels=1, normalisation="none")
    written = json.loads(json.dumps(dataclasses.asdict(config)))
    assert ResNet3dConfig.from_dict(written) == config
    assert written["kind"] == "resnet"
    with pytest.raises(TypeError):
        ResNet3dConfig.from_dict({**written, "size": "tiny"})
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"depth": 19}, "depth is 19, expected one of 18, 34, 50, 101, 152"),
        ({"kind": "vit"}, "kind is 'vit'"),
        ({"channels": 3}, "channels is 3, expected 1 or 2"),
        ({"cuboid_shape": (20, 4, 50)}, "at least 5 voxels"),
        ({"normalisation": "z-score"}, "normalisation is 'z-score', expected contrast or none"),
    ]
    for values, message in wrong:
        with pytest.raises(InputError, match=message):
            ResNet3dConfig(**values)


@settings(max_examples=20)
@given(st.tuples(*[st.integers(5, 40)] * 3), st.sampled_from([18, 50]))
def test_cuboids_of_any_shape_have_the_planes_that_the_config_says(
    shape: tuple[int, int, int], depth: int
) -> None:
    config = ResNet3dConfig(depth=depth, cuboid_shape=shape)
    with torch.device("meta"):  # shapes alone
        backbone, x = ResNet3d(config).eval(), torch.empty(2, 2, *shape)
        planes = [backbone.stem[0](x).shape[2]]
        x = backbone.stem(x)
        for stage in backbone.stages()[1:]:
            x = stage(x)
            planes.append(x.shape[2])
    assert tuple(planes) == config.planes
    assert min(x.shape) > 0
    assert x.shape[1] == backbone.embedding_width


def test_the_embedding_is_the_mean_of_the_map() -> None:
    backbone = build().eval()
    x = cuboids()
    with torch.no_grad():
        features, embedding = backbone(x), backbone.embed(x)
    assert features.shape == (2, 512, 1, 2, 2)
    assert embedding.shape == (2, backbone.embedding_width)
    torch.testing.assert_close(embedding, features.flatten(2).mean(2))
    assert (embedding[0] - embedding[1]).abs().max() > 1e-3


@pytest.mark.parametrize("depth", [18, 50])
def test_stages_hold_every_weight_once_from_input_to_output(depth: int) -> None:
    with torch.device("meta"):
        backbone = ResNet3d(ResNet3dConfig(depth=depth))
    grouped = [id(p) for stage in backbone.stages() for p in stage.parameters()]
    assert grouped == [id(p) for p in backbone.parameters()]
    assert len(set(grouped)) == len(grouped)
    assert [len(stage) for stage in backbone.stages()[1:]] == list(BLOCKS[depth])


def test_what_is_frozen_in_evaluation_mode_stays_while_the_rest_learns() -> None:
    backbone = build().train()
    *frozen, last = backbone.stages()
    for stage in frozen:
        stage.eval().requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], 0.1)
    backbone.embed(cuboids()).square().mean().backward()
    optimizer.step()
    changed = {n for n, t in backbone.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {f"stage4.{name}" for name in last.state_dict()}


@given(st.integers(0, 99), st.integers(1, 3))
def test_planes_are_normalised_each_by_itself(seed: int, n: int) -> None:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, 5, 6, 7, generator=random)
    x = x * torch.linspace(0.5, 9, 5)[:, None, None] + torch.arange(5)[:, None, None]
    norm = PlaneNorm(5)
    reference = torch.nn.BatchNorm3d(5, eps=1e-5, momentum=0.01)
    for module in (norm, reference):
        module.load_state_dict(
            {"weight": torch.linspace(1, 2, 5), "bias": torch.linspace(-1, 1, 5)}, strict=False
        )
    expected = reference(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(norm(x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(norm.running_mean, reference.running_mean)
    size = x.numel() / 5
    unbiased = 0.99 + (reference.running_var - 0.99) * (size - 1) / size
    torch.testing.assert_close(norm.running_var, unbiased)
    reference.load_state_dict(norm.state_dict(), strict=False)
    expected = reference.eval()(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(norm.eval()(x), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_half_precision_keeps_exact_statistics() -> None:
    backbone = build().train()
    reference = copy.deepcopy(backbone)
    with torch.autocast("cpu", torch.bfloat16):
        backbone.embed(cuboids())
    reference.embed(cuboids())
    for name, tensor in backbone.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, reference.state_dict()[name], atol=2e-3, rtol=2e-3)


def test_it_exports_for_any_number_of_cuboids() -> None:
    backbone = build().eval().requires_grad_(False)
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(backbone, (cuboids(2),), dynamic_shapes=dynamic).module()
    torch.testing.assert_close(program(cuboids(3)), backbone(cuboids(3)))


def older_alone(path: Path, shapes: Shapes) -> Path:
    return write_older(path, shapes)


def older_whole(path: Path, shapes: Shapes) -> Path:
    return write_older(path, shapes, around="model_weights")


def newer_named(path: Path, shapes: Shapes) -> Path:
    return write_newer(path, shapes, names=True)


def newer_nested(path: Path, shapes: Shapes) -> Path:
    return write_newer(path, shapes, around="layers/functional/layers")


FORMS = [older_alone, older_whole, newer_named, write_newer, newer_nested, write_zip]


@pytest.mark.parametrize("write", FORMS)
@pytest.mark.parametrize("channels", [1, 2])
def test_depth_and_channels_are_recognised_in_every_form(
    write: Callable[[Path, Shapes], Path], channels: int, tmp_path: Path
) -> None:
    read = read_cellfinder(write(tmp_path / "weights", keras_shapes(18, channels)))
    assert read.config == ResNet3dConfig(channels=channels, normalisation="none")
    with torch.device("meta"):
        expected = {k: v.shape for k, v in ResNet3d(read.config).state_dict().items()}
    assert {k: v.shape for k, v in read.tensors.items()} == expected
    assert all((tensor == FILL).all() for tensor in read.tensors.values())
    assert (read.head_weight.shape, read.head_bias.shape) == ((2, 512), (2,))


@pytest.mark.parametrize(
    "depth",
    [d if d < 101 else pytest.param(d, marks=pytest.mark.slow) for d in BLOCKS],
)
def test_every_depth_is_recognised(depth: int, tmp_path: Path) -> None:
    backbone, weight, _ = load_cellfinder(write_older(tmp_path / "w.h5", keras_shapes(depth)))
    assert backbone.config.depth == depth
    assert weight.shape == (2, backbone.embedding_width)
    assert not backbone.training
    assert all(p.requires_grad and not p.is_meta for p in backbone.parameters())


@pytest.mark.parametrize("named", [True, False], ids=["cellfinder's names", "other names"])
def test_layers_find_their_places_by_name_or_else_by_order(named: bool, tmp_path: Path) -> None:
    """Layers hold their numbers; where they have cellfinder's names, they may come in any order."""
    shapes = keras_shapes()
    names = list(shapes)
    path = write_older(
        tmp_path / "w.h5",
        shapes if named else {f"layer_{i}": shapes[name] for i, name in enumerate(names)},
    )
    with h5py.File(path, "r+") as file:
        for i, layer in enumerate(file.attrs["layer_names"][1:]):
            for dataset in (file[layer][weight] for weight in file[layer].attrs["weight_names"]):
                if len(dataset.shape) == 1:
                    dataset[...] = i
        if named:
            file.attrs["layer_names"] = file.attrs["layer_names"][::-1]
    tensors = read_cellfinder(path).tensors
    where = {name: i for i, name in enumerate(names)}
    assert (tensors["stem.1.weight"] == where["conv1_bn"]).all()
    assert (tensors["stage1.0.branch.4.running_var"] == where["resunit2_block0_bn_b"]).all()
    assert (tensors["stage4.0.shortcut.1.bias"] == where["resunit5_block0_shortcut_bn"]).all()
    assert (tensors["stage3.1.branch.1.running_mean"] == where["resunit4_block1_bn_a"]).all()


def test_kernels_are_turned_from_y_x_z_in_out(tmp_path: Path) -> None:
    path = write_older(tmp_path / "w.h5", keras_shapes())
    kernel = np.random.default_rng(0).normal(size=(7, 7, 3, 2, 64)).astype("float32")
    with h5py.File(path, "r+") as file:
        file["conv1/conv1/kernel:0"][...] = kernel
    backbone, _, _ = load_cellfinder(path)
    assert backbone.stem[0].weight[5, 1, 2, 3, 4].item() == kernel[3, 4, 2, 1, 5]


def changed(layer: str, shapes: list[tuple[int, ...]]) -> Shapes:
    return {**keras_shapes(), layer: shapes}


@pytest.mark.parametrize("write", [older_alone, write_newer, write_zip])
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (changed("conv1", [(7, 7, 3, 3, 64)]), "takes 3 channels; expected 1"),
        (changed("conv1_bn", [(16,)] * 4), r"shape \(16,\) .* expected \(12,\) .*20 × 50 × 50"),
        (changed("conv1_bn", [(64,)] * 4), r"shape \(64,\) "),
        (changed("fully_connected", [(512, 5), (5,)]), r"\(512, 5\).* expected \(512, 2\) .*two"),
        (changed("resunit3_block1_conv_a", [(3, 3, 3, 64, 128)]), r"expected \(3, 3, 3, 128, 128"),
        (changed("another", [(4, 2), (2,)]), "2 dense layers"),
        ({"conv1": [(3, 3, 3, 2, 8)], "dense": [(8, 2), (2,)]}, "holds 1 3D convolutions, 0 batch"),
        ({"fully_connected": [(512, 2), (2,)]}, "expected cellfinder's ResNet: 21, 37, 53, 104 or"),
    ],
)
def test_other_networks_are_refused(
    write: Callable[[Path, Shapes], Path], shapes: Shapes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_cellfinder(write(tmp_path / "weights.h5", shapes))
    assert "\n" not in str(caught.value)
    assert "weights.h5" in str(caught.value)


def empty_h5(path: Path) -> None:
    h5py.File(path, "w").close()


def another_h5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["cells"] = np.arange(9)
        file.attrs["layer_names"] = ["cells"]


def truncated_h5(path: Path) -> None:
    write_older(path, keras_shapes())
    path.write_bytes(path.read_bytes()[:-2000])


def lacks_a_weight(path: Path) -> None:
    write_older(path, keras_shapes())
    with h5py.File(path, "r+") as file:
        del file["conv1_bn/conv1_bn/beta:0"]


def not_finite(path: Path) -> None:
    write_older(path, keras_shapes())
    with h5py.File(path, "r+") as file:
        file["conv1_bn/conv1_bn/beta:0"][3] = np.nan


def whole_numbers(path: Path) -> None:
    write_older(path, keras_shapes())
    with h5py.File(path, "r+") as file:
        del file["conv1_bn/conv1_bn/beta:0"]
        file["conv1_bn/conv1_bn/beta:0"] = np.arange(12)


def linked_elsewhere(path: Path) -> None:
    write_older(path, keras_shapes())
    write_older(path.with_name("other.h5"), keras_shapes())
    with h5py.File(path, "r+") as file:
        del file["conv1_bn/conv1_bn/beta:0"]
        link = h5py.ExternalLink("other.h5", "conv1_bn/conv1_bn/beta:0")
        file["conv1_bn/conv1_bn/beta:0"] = link


def stored_elsewhere(path: Path) -> None:
    write_older(path, keras_shapes())
    path.with_name("raw").write_bytes(bytes(48))
    with h5py.File(path, "r+") as file:
        del file["conv1_bn/conv1_bn/beta:0"]
        file.create_dataset(
            "conv1_bn/conv1_bn/beta:0", (12,), "f4", external=[(path.with_name("raw"), 0, 48)]
        )


def truncated_zip(path: Path) -> None:
    write_zip(path, keras_shapes())
    path.write_bytes(path.read_bytes()[:-300])


def flipped_zip(path: Path) -> None:
    write_zip(path, keras_shapes())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def another_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"")


def zip_of_nonsense(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.weights.h5", b"nonsense")


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"conv1": np.zeros(3)}))


def torch_archive(path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"conv1": torch.zeros(3)}, buffer)
    path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (empty_h5, "0 3D convolutions"),
        (another_h5, "cannot be read as a file of keras's"),
        (truncated_h5, "cannot be read .*truncated"),
        (lacks_a_weight, "cannot be read .*conv1_bn/beta:0"),
        (not_finite, "layer conv1_bn has weights that are not finite"),
        (whole_numbers, "type int64; expected .* floats"),
        (linked_elsewhere, "cannot be read .*conv1_bn/beta:0"),
        (stored_elsewhere, "cannot be read .*conv1_bn/beta:0"),
        (truncated_zip, "cannot be read as"),
        (flipped_zip, "cannot be read as .*CRC"),
        (another_zip, "zip archive without model.weights.h5"),
        (zip_of_nonsense, "cannot be read as"),
        (pickled, "cannot be read as"),
        (torch_archive, "zip archive without model.weights.h5"),
        (lambda path: path.write_bytes(b""), "cannot be read as"),
        (Path.mkdir, "no weights at"),
        (lambda path: None, "no weights at .*model.h5; expected a file"),
    ],
)
def test_files_that_are_damaged_or_foreign_are_refused_in_a_line(
    write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write(tmp_path / "model.h5")
    with pytest.raises(CheckpointError, match=message) as caught:
        read_cellfinder(tmp_path / "model.h5")
    assert "\n" not in str(caught.value)
    assert "model.h5" in str(caught.value)


def test_without_h5py_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_older(tmp_path / "w.h5", keras_shapes())
    find = importlib.util.find_spec
    monkeypatch.setattr(keras_weights, "find_spec", lambda n: None if n == "h5py" else find(n))
    with pytest.raises(InputError, match=r"pip install 'cubeclf\[cellfinder\]'"):
        read_cellfinder(path)
