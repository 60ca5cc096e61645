from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cubeclf_core import load_classifier
from cubeclf_core.backbones import build_backbone
from cubeclf_core.fast import FastClassifier, fastest
from cubeclf_core.heads import HeadConfig
from cubeclf_core.resnet import ResNet3d, ResNet3dConfig
from cubeclf_core.trained import Classifier, save_classifier
from cubeclf_core.vit import Vit3dConfig

NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "projection": ({"projection": 16, "channels": 1}, {"kind": "mlp"}),
    "both": ({"projection": 16, "pooled_beside": True}, {}),
    "all": (
        {"positions": "learned", "register_tokens": 2, "layer_scale": 0.5},
        {"kind": "attention", "classes": ("no cell", "cell", "vessel")},
    ),
    "no filling": ({"register_tokens": 2}, {}),
    "small patches": ({"patch_um": (10.0, 10.0, 10.0)}, {}),
}


def classifier_of(which: str) -> Classifier:
    network, head = NETWORKS[which]
    torch.manual_seed(3)
    backbone = build_backbone(Vit3dConfig(size="nano", **network), 3)
    made = Classifier(backbone, HeadConfig(**head))
    with torch.no_grad():  # gains, queries and biases that are not what they start from
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape)
    return made.eval()


def counts(n: int, channels: int = 2) -> Tensor:
    """Spots of several heights on backgrounds of several levels; one without a background."""
    random = torch.Generator().manual_seed(0)
    rate = torch.logspace(1, 4, n).view(n, 1, 1, 1, 1).expand(n, channels, 20, 50, 50).clone()
    rate[:, :1, 8:12, 20:30, 20:30] *= torch.linspace(1, 4, n).view(n, 1, 1, 1, 1)
    cuboids = torch.poisson(rate, generator=random)
    cuboids[0, -1] = 0
    return cuboids


@pytest.mark.parametrize("which", NETWORKS)
def test_the_fast_network_is_the_trained_one(which: str) -> None:
    trained = classifier_of(which)
    fast = FastClassifier(trained.backbone.config, trained.head.config)  # type: ignore[arg-type]
    fast.load_state_dict(trained.state_dict())
    fast.settle(torch.device("cpu"), torch.float32)
    cuboids = counts(6)
    with torch.inference_mode():
        expected, found = trained(cuboids[:, : trained.backbone.config.channels]), fast(cuboids)
        features = fast.features(cuboids)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trained.head(features), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", ["plain", "all"])
def test_a_loaded_classifier_is_fast_unless_it_is_to_be_exact(which: str, tmp_path: Path) -> None:
    trained = classifier_of(which)
    file = tmp_path / "classifier.safetensors"
    save_classifier(file, trained, {})
    cuboids = counts(16)
    with torch.inference_mode():
        expected = trained(cuboids).double().softmax(1).numpy()
    exact = load_classifier(file, exact=True).predict(cuboids)
    fast = load_classifier(file).predict(cuboids)
    assert abs(exact - expected).max() < 1e-6
    assert 0 < abs(fast - exact).max() < 0.03
    assert (load_classifier(file).predict(cuboids) == fast).all()
    _, dtype = fastest()
    blocks = load_classifier(file).network.backbone.blocks  # type: ignore[attr-defined]
    assert {parameter.dtype for parameter in blocks.parameters()} == {dtype}


@pytest.mark.skipif(fastest()[1] != torch.bfloat16, reason="no units for bfloat16")
def test_threads_change_nothing_and_are_as_many_afterwards(tmp_path: Path) -> None:
    file = tmp_path / "classifier.safetensors"
    save_classifier(file, classifier_of("plain"), {})
    cuboids, before = counts(70), torch.get_num_threads()
    try:
        found = []
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            found.append(load_classifier(file).predict(cuboids))
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(before)
    assert np.ptp(found[0][:, 1]) > 0.01
    for others in found[1:]:
        np.testing.assert_array_equal(others, found[0])


def test_a_residual_network_is_what_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = Classifier(ResNet3d(ResNet3dConfig(depth=18))).eval()
    save_classifier(tmp_path / "c.safetensors", trained, {})
    with torch.inference_mode():
        expected = trained(counts(2)).double().softmax(1).numpy()
    assert (load_classifier(tmp_path / "c.safetensors").predict(counts(2)) == expected).all()


def test_classifying_waits_for_neither_timm_nor_torchvision(tmp_path: Path) -> None:
    file = tmp_path / "c.safetensors"
    save_classifier(file, classifier_of("plain"), {})
    code = (
        "import sys; import finetune.classifying.run; from cubeclf_core import load_classifier\n"
        f"load_classifier({str(file)!r})\n"
        "late = {'timm', 'torchvision', 'sklearn', 'lightning_fabric', 'lightly', 'scipy'}\n"
        "assert not late & set(sys.modules), late & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
