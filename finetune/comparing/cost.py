"""What a contender's network costs: parameters, arithmetic and time for each cuboid, here."""

from __future__ import annotations

import statistics
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cubeclf_core.engine import make_fabric
from finetune.comparing.results import Cost
from finetune.config import FinetuneConfig
from finetune.starting import load_start, untrained_classifier

_BATCH = 32
_ROUNDS = 5


def measure_cost(config: FinetuneConfig) -> Cost:
    """Build a contender's network and measure it."""
    start = load_start(config.backbone, channels=config.channels, seed=config.seed)
    classifier = untrained_classifier(start, config)
    device = make_fabric(config.precision, alone=True).device
    classifier = classifier.to(device).eval().requires_grad_(False)
    threads = torch.get_num_threads()
    taken = classifier.backbone.config
    cuboids = torch.rand(_BATCH, taken.channels, *taken.cuboid_shape, device=device) * 1000
    # Fused attention is not counted on a CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        classifier(cuboids)
    try:
        torch.set_num_threads(1)
        ms = _milliseconds(classifier, cuboids)
    finally:
        torch.set_num_threads(threads)
    return Cost(
        parameters=sum(p.numel() for p in classifier.parameters()),
        gflop=counter.get_total_flops() / _BATCH / 1e9,
        ms=ms,
        device=_name(device),
        threads=1,
        copies=config.copies if config.embeds_once else 0,
    )


@torch.no_grad()
def _milliseconds(classifier: torch.nn.Module, cuboids: torch.Tensor) -> float:
    took = []
    for _ in range(_ROUNDS + 1):
        start = time.perf_counter()
        classifier(cuboids)
        if cuboids.is_cuda:
            torch.cuda.synchronize()
        took.append(1000 * (time.perf_counter() - start) / _BATCH)
    return statistics.median(took[1:])  # the first one allocates


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
