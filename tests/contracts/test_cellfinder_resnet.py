"""Our residual network against the one that cellfinder builds, and files that keras writes."""

from __future__ import annotations

import functools
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cubeclf_core.keras_weights import layer_names, load_cellfinder, read_cellfinder
from cubeclf_core.resnet import BLOCKS, PlaneNorm, ResNet3d, ResNet3dConfig

# keras's own reading of its variables, with numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def resnet() -> ModuleType:
    """Import cellfinder's module here only, as it takes seconds; it sets Keras' backend itself."""
    return pytest.importorskip(
        "cellfinder.core.classify.resnet", reason="cellfinder is not installed"
    )


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is gone afterwards: pytest keeps its own, and these files are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def build(resnet: ModuleType, depth: int, channels: int = 2) -> Any:
    state = random.getstate()
    random.seed(0)  # keras draws the seeds of its initial weights from here
    try:
        return resnet.build_model((50, 50, 20, channels), network_depth=f"{depth}-layer")
    finally:
        random.setstate(state)


def counts(n: int = 2, channels: int = 2) -> np.ndarray:
    """Random raw counts as cellfinder takes them, (b, y, x, z, c), with structure in each axis."""
    draws = np.random.default_rng(0)
    shape = (n, 50, 50, 20, channels)
    return (draws.gamma(2, 150, shape) + draws.gamma(1, 200, (n, 50, 1, 20, 1))).astype("float32")


def ours(cuboids: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(cuboids).permute(0, 4, 3, 1, 2).contiguous()


def perturb(resnet: ModuleType, model: Any) -> Any:
    """Give every normalisation numbers of its own, near what its input is like.

    Random ones alone would let activations grow without bound from block to block.
    """
    draws, cuboids = np.random.default_rng(1), counts(2, model.input_shape[-1])
    norms = [layer for layer in model.layers if type(layer).__name__ == "BatchNormalization"]
    for layer in norms:
        layer.momentum = 0.0  # keep what comes through in this pass
    model(cuboids, training=True)
    for layer in norms:
        layer.momentum = 0.99
        gamma, _, mean, variance = layer.get_weights()
        gamma, beta = draws.uniform(0.5, 1.5, gamma.shape), draws.normal(0, 0.3, gamma.shape)
        mean = mean + draws.normal(0, 0.3, mean.shape) * np.sqrt(variance)
        layer.set_weights([gamma, beta, mean, variance * draws.uniform(0.7, 1.5, mean.shape)])
    features = features_of(resnet, model).predict(cuboids, verbose=0)
    kernel = draws.normal(0, 1, (features.shape[1], 2)) / features.std(0).clip(1e-3).sum() ** 0.5
    model.get_layer("fully_connected").set_weights([kernel, -features.mean(0) @ kernel])
    return model


def features_of(resnet: ModuleType, model: Any) -> Any:
    pooled = model.get_layer("final_average_pool").output
    return resnet.Model(inputs=model.inputs, outputs=pooled)


@pytest.fixture(scope="module")
def fresh(resnet: ModuleType) -> Callable[[int], Any]:
    """Untrained models by depth, each made once, as that takes seconds."""
    return functools.cache(lambda depth: build(resnet, depth))


@pytest.fixture(scope="module")
def resnet18(resnet: ModuleType) -> Any:
    model = build(resnet, 18)
    # so that there is an optimizer's state to store
    model.fit(counts(), np.eye(2, dtype="float32"), epochs=1, verbose=0)
    return perturb(resnet, model)


def save_as_keras(model: Any, folder: Path) -> Path:
    model.save(folder / "model.keras")
    return folder / "model.keras"


def save_weights(model: Any, folder: Path) -> Path:
    model.save_weights(folder / "model.weights.h5")
    return folder / "model.weights.h5"


def save_as_h5(model: Any, folder: Path) -> Path:
    model.save(folder / "model.h5")
    return folder / "model.h5"


def save_older_weights(model: Any, folder: Path) -> Path:
    """As `save_weights` wrote them before keras 3: the same groups without one around them."""
    import h5py

    whole, alone = save_as_h5(model, folder), folder / "alone.h5"
    with h5py.File(whole) as source, h5py.File(alone, "w") as target:
        group = source["model_weights"]
        for name in group:
            source.copy(group[name], target)
        target.attrs.update(group.attrs)
    whole.unlink()
    return alone


def probabilities(path: Path, cuboids: np.ndarray) -> np.ndarray:
    backbone, weight, bias = load_cellfinder(path)
    assert backbone.config.normalisation == "none"
    with torch.no_grad():
        logits = backbone.embed(ours(cuboids)) @ weight.T + bias
    return logits.softmax(1).numpy()


@pytest.mark.parametrize("save", [save_as_keras, save_weights, save_as_h5, save_older_weights])
def test_every_file_gives_cellfinders_output(
    resnet18: Any, save: Callable[[Any, Path], Path], folder: Path
) -> None:
    cuboids = counts(4)
    expected = np.asarray(resnet18.predict(cuboids, verbose=0))
    assert np.ptp(expected[:, 1]) > 0.01  # cuboids are told apart
    np.testing.assert_allclose(probabilities(save(resnet18, folder), cuboids), expected, atol=1e-4)


def assert_same_features(resnet: ModuleType, model: Any, path: Path, channels: int) -> None:
    cuboids = counts(2, channels)
    expected = features_of(resnet, model).predict(cuboids, verbose=0)
    backbone, _, _ = load_cellfinder(path)
    with torch.no_grad():
        found = backbone.embed(ours(cuboids)).numpy()
    assert expected.std() > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


def test_bottlenecks_and_one_channel(resnet: ModuleType, folder: Path) -> None:
    model = perturb(resnet, build(resnet, 50, channels=1))
    path = save_weights(model, folder)
    assert read_cellfinder(path).config == ResNet3dConfig(
        depth=50, channels=1, normalisation="none"
    )
    assert_same_features(resnet, model, path, channels=1)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [34, 101, 152])
def test_the_other_depths(resnet: ModuleType, depth: int, folder: Path) -> None:
    model = perturb(resnet, build(resnet, depth))
    path = save_as_keras(model, folder)
    assert read_cellfinder(path).config.depth == depth
    assert_same_features(resnet, model, path, channels=2)


def n_numbers(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.state_dict().values())


@pytest.mark.parametrize(
    "depth",
    [
        depth if depth in (18, 50) else pytest.param(depth, marks=pytest.mark.slow)
        for depth in BLOCKS
    ],
)
def test_layers_and_numbers_of_weights_are_cellfinders(
    fresh: Callable[[int], Any], depth: int
) -> None:
    model = fresh(depth)
    with torch.device("meta"):
        backbone = ResNet3d(ResNet3dConfig(depth=depth))
        head = nn.Linear(backbone.embedding_width, 2)
    trainable = sum(p.numel() for p in [*backbone.parameters(), *head.parameters()])
    assert n_numbers(backbone) + n_numbers(head) == model.count_params()
    assert trainable == sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    for kind, part in (("Conv3D", "conv"), ("BatchNormalization", "bn")):
        theirs = [layer.name for layer in model.layers if type(layer).__name__ == kind]
        assert layer_names(depth, part) == theirs  # where a file gives no names, order is all


@pytest.fixture
def resnet18_double(resnet: ModuleType, resnet18: Any) -> Iterator[Any]:
    import keras

    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        model = build(resnet, 18)
        model.set_weights(resnet18.get_weights())
        yield model
    finally:
        keras.config.set_floatx(before)


def test_training_is_cellfinders(resnet18_double: Any, folder: Path) -> None:
    """Output and gradient in training mode, and the running statistics that are left behind.

    In float64 up to the probabilities, which cellfinder rounds to float32: in float32 a unit near
    zero may be on in one alone, which moves the gradient by a percent.
    """
    model, cuboids = resnet18_double, counts(2).astype("float64")
    backbone, head_weight, head_bias = load_cellfinder(save_weights(model, folder))
    backbone = backbone.double().train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    found = (backbone.embed(ours(cuboids)) @ head_weight.double().T + head_bias.double()).softmax(1)
    expected = model(cuboids, training=True)
    torch.testing.assert_close(found.float(), expected, atol=1e-6, rtol=0)
    found[:, 1].sum().backward()
    expected[:, 1].sum().backward()
    gradient = model.get_layer("conv1").kernel.value.grad.permute(4, 3, 2, 0, 1)
    away = backbone.stem[0].weight.grad - gradient
    assert float(away.abs().max()) < 1e-4 * float(gradient.abs().max())
    after = read_cellfinder(save_weights(model, folder)).tensors
    for name, tensor in backbone.state_dict().items():
        torch.testing.assert_close(tensor, after[name].double(), atol=1e-5, rtol=1e-5)
        assert ("running" in name) != torch.equal(tensor, before[name])


def test_random_weights_are_drawn_as_cellfinders(fresh: Callable[[int], Any]) -> None:
    model = fresh(18)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = ResNet3d(ResNet3dConfig())
    theirs = [layer for layer in model.layers if type(layer).__name__ == "Conv3D"]
    kernels = [module for module in backbone.modules() if isinstance(module, nn.Conv3d)]
    assert len(kernels) == len(theirs) == 21
    for kernel, layer in zip(kernels, theirs, strict=True):
        weight = kernel.weight.detach().flatten()[:100_000].numpy()
        expected = layer.get_weights()[0].ravel()[:100_000]
        shares = (0.001, 0.1, 0.3, 0.7, 0.9, 0.999)
        np.testing.assert_allclose(
            np.quantile(weight, shares),
            np.quantile(expected, shares),
            atol=12 * expected.std() / len(expected) ** 0.5,  # five deviations of such a share
        )
    norms = [module for module in backbone.modules() if isinstance(module, PlaneNorm)]
    theirs = [layer for layer in model.layers if type(layer).__name__ == "BatchNormalization"]
    for norm, layer in zip(norms, theirs, strict=True):
        for tensor, expected in zip(norm.state_dict().values(), layer.get_weights(), strict=True):
            np.testing.assert_array_equal(tensor.numpy(), expected)
