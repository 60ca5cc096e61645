"""Exported .keras files in cellfinder's own hands: classification, cubes, further training."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from cubeclf_core.cells import Cells, write_cells
from cubeclf_core.classifier import load_classifier
from cubeclf_core.heads import HeadConfig
from cubeclf_core.networks import make_network
from cubeclf_core.resnet import ResNet3dConfig
from cubeclf_core.trained import Classifier, load_trained, save_classifier
from cubeclf_core.vit import Vit3dConfig
from cubeclf_core.volumes import Volume, open_volume

SHAPE, UM = (20, 50, 50), (5.0, 1.0, 1.0)
OWN_UM = (5.0, 2.0, 2.0)  # of the real crop
pytestmark = [
    # keras's own: reading its variables with numpy 2, and an optimizer that has not begun
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Skipping variable loading:UserWarning"),
]


@pytest.fixture(scope="module")
def cellfinder() -> ModuleType:
    """Import cellfinder's module here only, as it takes seconds; it sets Keras' backend itself."""
    return pytest.importorskip(
        "cellfinder.core.classify.classify", reason="cellfinder is not installed"
    )


@pytest.fixture(scope="module")
def crop(real_data: Path) -> Volume:
    folder = real_data / "serial2p_crop"
    return open_volume(folder / "ch0", background=folder / "ch1", voxel_size_um=OWN_UM)


def random_positions(volume: Volume, n: int) -> np.ndarray:
    """Whole voxels all over y and x, and where most cuboids fit along z."""
    random = np.random.default_rng(0)
    _, y, x = volume.shape
    columns = (random.integers(9, 22, n), random.integers(0, y, n), random.integers(0, x, n))
    return np.unique(np.stack(columns, 1), axis=0)


def as_cells(positions: np.ndarray) -> list[Any]:
    from brainglobe_utils.cells.cells import Cell

    return [Cell((x, y, z), Cell.UNKNOWN) for z, y, x in positions.tolist()]


def cut_by_cellfinder(volume: Volume, positions: np.ndarray) -> torch.Tensor:
    """Cuboids as cellfinder gives them to a model, (b, y, x, z, c)."""
    from cellfinder.core.classify.cube_generator import CuboidArrayDataset

    whole = volume.read((0, 0, 0), volume.shape)
    dataset = CuboidArrayDataset(
        signal_array=whole[0],
        background_array=whole[1],
        points=as_cells(positions),
        data_voxel_sizes=volume.voxel_size_um,
        network_voxel_sizes=UM,
        network_cuboid_voxels=SHAPE,
        axis_order=("z", "y", "x"),
        max_axis_0_cuboids_buffered=1,
    )
    order = np.argsort(dataset.points_arr[:, 0].numpy(), kind="stable")
    return dataset[order.tolist()]


def make_classifier(
    path: Path, volume: Volume, config: Any, kind: str = "linear", spread: bool = True
) -> None:
    """A classifier with random weights, by choice with probabilities all over on the crop.

    Of a random residual network that takes a head that magnifies what little its features differ,
    and no training goes on from there.
    """
    cubes = cut_by_cellfinder(volume, random_positions(volume, 40)).permute(0, 4, 3, 1, 2)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        classifier = Classifier(make_network(config), HeadConfig(kind=kind))
        backbone = classifier.backbone
        for name, parameter in backbone.named_parameters():
            if name.endswith(("gamma", "cls_token", "bias")):  # some begin at zero
                parameter.add_(0.1 * torch.randn(parameter.shape))
        if isinstance(config, ResNet3dConfig):  # running statistics as training leaves them
            for module in backbone.modules():
                if hasattr(module, "momentum"):
                    module.momentum = 1.0
            backbone.train()
            classifier.features(cubes)
        if spread:
            spread_probabilities(classifier.eval(), cubes)
    save_classifier(path, classifier, {"threshold": 0.5})


def spread_probabilities(classifier: Classifier, cubes: torch.Tensor) -> None:
    head = classifier.head
    head.fit_scale(classifier.features(cubes))
    if head.query is not None:
        head.query.copy_(torch.randn(head.query.shape))
    logits = classifier(cubes)
    logit = logits[:, 1] - logits[:, 0]
    head.last.weight.div_(logit.std())
    head.last.bias.copy_(torch.tensor([0.0, 0.5]) - logits.mean(0) / logit.std())
    head.temperature.fill_(0.8)


@pytest.fixture
def exported(tmp_path: Path, crop: Volume, command: Callable) -> Callable[..., Path]:
    """Make a classifier and export it for cellfinder."""

    def export(config: Any, *flags: object, kind: str = "linear", spread: bool = True) -> Path:
        make_classifier(tmp_path / "c.safetensors", crop, config, kind, spread)
        out = tmp_path / "c.keras"
        words = ("--format", "keras", "--out", out, *flags)
        outcome = command("cubeclf-export", tmp_path / "c.safetensors", *words)
        assert outcome.code == 0, outcome.err
        return out

    return export


def classified_by_cellfinder(
    cellfinder: ModuleType, volume: Volume, positions: np.ndarray, model: Path
) -> dict[tuple[int, ...], int]:
    """The type that cellfinder's own classification gives each position that it keeps."""
    whole = volume.read((0, 0, 0), volume.shape)
    found = cellfinder.main(
        points=as_cells(positions),
        signal_array=whole[0],
        background_array=whole[1],
        n_free_cpus=0,
        voxel_sizes=volume.voxel_size_um,
        network_voxel_sizes=UM,
        batch_size=64,
        cube_height=SHAPE[1],
        cube_width=SHAPE[2],
        cube_depth=SHAPE[0],
        trained_model=model,
        model_weights=None,
        network_depth="50",
        max_workers=0,
    )
    return {(cell.z, cell.y, cell.x): cell.type for cell in found}


def test_cellfinder_gives_the_types_that_we_give(
    cellfinder: ModuleType, crop: Volume, real_data: Path, exported, tmp_path: Path, command
) -> None:
    positions = random_positions(crop, 800)
    model = exported(Vit3dConfig(size="nano"), "--threshold", 0.6)
    theirs = classified_by_cellfinder(cellfinder, crop, positions, model)
    assert 500 <= len(theirs) < len(positions)  # those at the border are dropped there
    shares = np.bincount(list(theirs.values()), minlength=3) / len(theirs)
    assert shares[1:].min() > 0.1

    cells = tmp_path / "candidates.xml"
    write_cells(cells, Cells(positions.astype(np.float64), np.ones(len(positions), np.int64)))
    folder, out = real_data / "serial2p_crop", tmp_path / "out"
    brain = (folder / "ch0", "--background", folder / "ch1", "--voxel-size-um", *OWN_UM)
    trained = (tmp_path / "c.safetensors", "--exact", "--threshold", 0.6)
    for given in ((model,), trained):
        words = ("--cells", cells, "--out", out, "--overwrite", "--classifier", *given)
        outcome = command("cubeclf-classify", *brain, *words)
        assert outcome.code == 0, outcome.err
        with (out / "candidates.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(positions)
        ours = {tuple(int(row[axis]) for axis in "zyx"): int(row["type"]) for row in rows}
        assert {position: ours[position] for position in theirs} == theirs


KINDS = {
    "signal": (
        Vit3dConfig(size="nano", channels=1, projection=16, pooled_beside=True),
        "linear",
    ),
    "registers": (
        Vit3dConfig(
            size="nano", register_tokens=2, layer_scale=0.1, positions="learned", projection=16
        ),
        "mlp",
    ),
    "attention": (Vit3dConfig(size="nano"), "attention"),
    "small patches": (Vit3dConfig(size="nano", patch_um=(10.0, 10.0, 10.0)), "linear"),
    "resnet18": (ResNet3dConfig(depth=18), "linear"),
    "resnet50, signal": (ResNet3dConfig(depth=50, channels=1), "linear"),
    "resnet18, raw": (ResNet3dConfig(depth=18, normalisation="none"), "linear"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "kind"),
    [pytest.param(*arguments, id=name) for name, arguments in KINDS.items()],
)
def test_probabilities_on_cellfinders_cubes_are_ours(
    cellfinder: ModuleType, crop: Volume, exported, config, kind: str
) -> None:
    """The threshold becomes one half; a network of one channel does not look at the second."""
    from cellfinder.core.classify.tools import get_model

    threshold = 0.7
    path = exported(config, "--threshold", threshold, kind=kind)
    cubes = cut_by_cellfinder(crop, random_positions(crop, 60))
    assert cubes.shape[-1] == 2
    trained, _ = load_trained(path.with_suffix(".safetensors"))
    zyx = cubes.permute(0, 4, 3, 1, 2)
    with torch.no_grad():
        logits = trained(zyx[:, : config.channels]).double()
    expected = logits.softmax(1)[:, 1].numpy()
    assert expected.std() > 0.05
    moved = (logits[:, 1] - logits[:, 0] - math.log(threshold / (1 - threshold))).sigmoid()
    found = get_model(existing_model=path, inference=True)(cubes).cpu().numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, 1], moved, atol=1e-4)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    ours = load_classifier(path)
    assert ours.threshold == threshold
    np.testing.assert_allclose(ours.predict(zyx)[:, 1], expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [Vit3dConfig(size="nano"), ResNet3dConfig(depth=18)], ids=["vit", "resnet"]
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # what torch and keras tell cellfinder
def test_cellfinder_goes_on_training_it(
    cellfinder: ModuleType, crop: Volume, real_data: Path, exported, tmp_path: Path, config
) -> None:
    from cellfinder.core.classify.tools import get_model
    from cellfinder.core.train import train_yaml

    path = exported(config, spread=isinstance(config, Vit3dConfig))
    entries = [
        {
            "cube_dir": str(real_data / "cubes" / folder),
            "cell_def": "",
            "type": kind,
            "signal_channel": 0,
            "bg_channel": 1,
        }
        for folder, kind in (("cells", "cell"), ("non_cells", "no_cell"))
    ]
    (tmp_path / "training.yaml").write_text(yaml.safe_dump({"data": entries}))
    out = tmp_path / "trained"
    train_yaml.run(
        out,
        [tmp_path / "training.yaml"],
        trained_model=path,
        model_weights=path,  # not looked at, but else cellfinder downloads its own
        continue_training=True,
        test_fraction=0,
        batch_size=4,
        epochs=10,
        max_workers=0,
        no_augment=True,
        no_save_checkpoints=True,
        save_progress=True,
    )
    with (out / "training.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 10
    assert losses[-1] < 0.7 * losses[0]
    positions = random_positions(crop, 20)
    cubes = cut_by_cellfinder(crop, positions)
    before, after = (
        get_model(existing_model=file, inference=True)(cubes).cpu().numpy()
        for file in (path, out / "model.keras")
    )
    assert np.abs(after - before).max() > 0.01
    assert classified_by_cellfinder(cellfinder, crop, positions, out / "model.keras")


@pytest.mark.slow
@pytest.mark.parametrize("release", ["keras==3.7.0", "keras"], ids=["oldest", "newest"])
@pytest.mark.parametrize("kind", ["registers", "resnet18"])
def test_the_oldest_and_the_newest_keras_load_it(
    cellfinder: ModuleType, crop: Volume, exported, tmp_path: Path, release: str, kind: str
) -> None:
    """Each in a folder of its own that goes before what is installed."""
    own = tmp_path / "own"
    install = (sys.executable, "-m", "pip", "install", "--no-deps", "--target", own, release)
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{release} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    config, head = KINDS[kind]
    path = exported(config, kind=head)
    cubes = cut_by_cellfinder(crop, random_positions(crop, 20)).numpy()
    np.save(tmp_path / "cubes.npy", cubes)
    code = """
import sys
import numpy as np
import keras
assert keras.__file__.startswith(sys.argv[1]), keras.__file__
model = keras.models.load_model(sys.argv[2])
model.trainable = False
np.save(sys.argv[3] + "/found.npy", model(np.load(sys.argv[3] + "/cubes.npy")).cpu().numpy())
print(keras.__version__)
"""
    words = [sys.executable, "-c", code, str(own), str(path), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(own), "KERAS_BACKEND": "torch"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    if "==" in release:
        assert done.stdout.strip() == release.partition("==")[2]
    trained, _ = load_trained(path.with_suffix(".safetensors"))
    with torch.no_grad():
        zyx = torch.from_numpy(cubes).permute(0, 4, 3, 1, 2)
        expected = trained(zyx).softmax(1).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, atol=1e-4)
