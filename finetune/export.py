"""The run of `cubeclf-export`: a trained classifier as one file for inference."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from cubeclf_core.classifier import load_classifier
from cubeclf_core.console import say
from cubeclf_core.errors import InputError, RunFailed
from cubeclf_core.exported import save_exported
from cubeclf_core.files import check_output, replacing
from cubeclf_core.heads import HeadConfig, TwoClasses
from cubeclf_core.trained import load_trained
from finetune.config import ExportConfig

TOLERANCE = 1e-4


def export(config: ExportConfig) -> None:
    """Export, read back, compare, and only then put the file in place.

    Raises
    ------
    InputError
        If there is no classifier, or the file exists.
    RunFailed
        If a probability of the file differs from the trained network's by more than 1e-4.
    """
    check_output(config.out, overwrite=config.overwrite, inputs=[config.run], marker=None)
    if config.out.suffix != ".pt2":
        raise InputError(f"--out is {config.out}; a torch.export program needs the suffix .pt2")
    network: nn.Module
    network, header = load_trained(config.run)
    taken = network.backbone.config
    cuboids = _counts_like_a_camera(taken.channels, taken.cuboid_shape)
    if config.two_classes and len(header.head["classes"]) > 2:
        network = TwoClasses(network).eval()
        header = replace(header, head={**header.head, "classes": list(HeadConfig.classes)})
    with replacing(config.out) as temporary:
        save_exported(temporary, network, cuboids, header)
        with torch.inference_mode():
            expected = network(cuboids).double().softmax(1)
        found = torch.from_numpy(load_classifier(temporary).predict(cuboids))
        difference = float((found - expected).abs().max())
        if not difference <= TOLERANCE:
            raise RunFailed(
                f"the exported probabilities differ from the network's by {difference:.2g}; "
                f"expected at most {TOLERANCE:g}; nothing was written"
            )
    say(f"exported    {config.out} (largest difference in probability {difference:.1e})")


def _counts_like_a_camera(channels: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """Eight cuboids of raw counts: blobs of several sizes and heights on a noisy background."""
    random = torch.Generator().manual_seed(0)
    axes = [torch.linspace(-1, 1, n) for n in shape]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0)
    sizes = torch.linspace(0.01, 0.5, 8).view(8, 1, 1, 1, 1)
    heights = torch.logspace(1.5, 4, 8).view(8, 1, 1, 1, 1)
    rate = 200 + heights * torch.exp(-radius / sizes)
    return torch.poisson(rate.expand(8, channels, *shape).contiguous(), generator=random)
