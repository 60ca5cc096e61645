"""Labelled cuboids that are told apart by the width of what they show, and heads fitted on them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cubeclf_core.backbones import build_backbone
from cubeclf_core.network_configs import n_projected
from cubeclf_core.trained import Classifier, fresh_classifier
from cubeclf_core.vit import Vit3dConfig
from finetune.examples import in_parts, keep_features
from finetune.labels import Labelled
from finetune.training import fit_head


def make_blobs(n: int, seed: int, channels: int = 1) -> Labelled:
    """Cuboids of noise; a cell is wide, and anything else a speck of the same brightness."""
    labels = (np.arange(n) % 3 == 0).astype(np.int64)
    axes = torch.meshgrid(
        *(torch.linspace(-50, 50, 20), *[torch.linspace(-25, 25, 50)] * 2), indexing="ij"
    )
    radius = torch.stack(axes).square().sum(0)
    widths = torch.where(torch.from_numpy(labels) == 1, 50.0, 8.0).view(n, 1, 1, 1, 1)
    rate = 100 + 150 * torch.exp(-radius / widths)
    random = torch.Generator().manual_seed(seed)
    raw = torch.poisson(rate.repeat(1, channels, 1, 1, 1), generator=random)
    return Labelled.unplaced(raw, labels, "blobs")


def fit(classifier: Classifier, data: Labelled, seed: int = 0) -> Classifier:
    """Fit the linear head on all labels."""
    features = keep_features(classifier, data.cuboids, copies=4)
    n, brains = n_projected(classifier.backbone.config), data.brain_numbers
    fit_head(classifier.head, features, data.labels, brains, seed, n_projected=n)
    return classifier


def scores(classifier: Classifier, cuboids: torch.Tensor) -> npt.NDArray[np.float64]:
    """Probability of a cell."""
    logits = in_parts(classifier.eval(), lambda i: cuboids[i], torch.arange(len(cuboids)))
    found: npt.NDArray[np.float64] = logits.double().softmax(1)[:, 1].numpy()
    return found


@pytest.fixture(scope="session")
def blobs():
    return make_blobs


@pytest.fixture(scope="session")
def fit_at_once():
    return fit


@pytest.fixture(scope="session")
def predict():
    return scores


@pytest.fixture(scope="session")
def fitted():
    """Make a classifier that tells blobs apart."""

    def make(channels: int = 1) -> Classifier:
        network = Vit3dConfig(size="nano", channels=channels, projection=16)
        torch.manual_seed(0)
        fresh = fresh_classifier(build_backbone(network, seed=0))
        classifier = fit(fresh, make_blobs(36, 0, channels))
        return classifier.requires_grad_(False).eval()

    return make
