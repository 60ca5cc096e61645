"""What a contender's network costs: parameters, arithmetic and time for each cuboid, here."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cubeclf_core.engine import DEVICE_KINDS, make_fabric
from finetune.config import FinetuneConfig
from finetune.starting import load_start, untrained_classifier

_BATCH = 32
_ROUNDS = 5


@dataclass(frozen=True)
class Cost:
    """Of one cuboid, in inference, in float32.

    Attributes
    ----------
    parameters
        Of backbone and head.
    gflop
        10⁹ floating-point operations forward: a multiplication and an addition are two.
    ms
        Milliseconds a cuboid in batches of 32 on `device` with `threads`, one as in training.
    device, threads
        Where that was measured.
    copies
        Of each label that a frozen backbone is asked about before its head is fitted; 0 of others.
    """

    parameters: int
    gflop: float
    ms: float
    device: str
    threads: int
    copies: int = 0

    def seconds_to_train(self, labels: int, seconds: float) -> float:
        """Seconds from labels to a classifier.

        A comparison asks a frozen backbone once for all cells, which counts in none of them. Who
        has so many labels asks it about these.

        Parameters
        ----------
        labels
            How many.
        seconds
            Of training, without that.
        """
        return seconds + labels * self.copies * self.ms / 1000

    @property
    def kind(self) -> str:
        """Kind of the device, as `cubeclf_core.engine.DEVICE_KINDS` has it."""
        return self.device if self.device in DEVICE_KINDS else "cuda"


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
