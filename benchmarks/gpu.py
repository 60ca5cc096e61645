"""Measure training and inference on a GPU, in absolute terms.

For each size of the network, eager and compiled: cuboids a second of a training step on one batch
in memory, share of the card's bfloat16 peak, memory, and which share of its time a step waits for
a stream of cuboids from an OME-Zarr. Then cuboids a second of a classifier. Takes some minutes;
nothing else should run on the card meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.learning.config import SpeedEffort
from benchmarks.learning.training_speed import Trainer, open_stream
from benchmarks.output import Figures, machine, working_folder, write_json
from benchmarks.page import gpu_part
from benchmarks.streams import to_fill
from cubeclf_core.backbones import build_backbone
from cubeclf_core.console import console, say
from cubeclf_core.engine import make_fabric
from cubeclf_core.errors import CubeclfError, InputError
from cubeclf_core.fast import FastClassifier
from cubeclf_core.heads import HeadConfig
from cubeclf_core.vit_config import Vit3dConfig
from pretrain.batches import to_network
from pretrain.config import PretrainConfig

# Dense products of bfloat16, by the makers' data sheets, in TFLOP/s.
PEAKS = {
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
}
BATCHES = {"nano": 1024, "tiny": 1024, "small": 1024, "base": 512}
PACKAGES = ("torch", "timm", "zarr", "numpy")
MODES = ("eager", "compiled")
_STEPS, _ROUNDS = 10, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; give the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    say_flag = parser.add_argument
    say_flag("--sizes", nargs="+", choices=list(BATCHES), default=["tiny", "small", "base"])
    say_flag("--methods", nargs="+", choices=["simclr", "mae"], default=["simclr", "mae"])
    say_flag("--json", type=Path, help="file to write all figures to, as one flat object")
    given = parser.parse_args(argv)
    try:
        if not torch.cuda.is_available():
            raise InputError("no GPU here; on a CPU, python -m benchmarks.pretraining measures")
        with working_folder(None) as folder:
            figures = measure(given.sizes, given.methods, folder, given.json)
    except CubeclfError as error:
        console.print(f"error: {error}", markup=False)
        return error.exit_code
    print("\n\n".join(gpu_part(figures)), flush=True)
    return 0


def measure(
    sizes: Sequence[str], methods: Sequence[str], folder: Path, json_file: Path | None
) -> Figures:
    """Measure all there is; what is known is in `json_file` at any time.

    Returns
    -------
    dict
        ``train.METHOD.SIZE.MODE.FIGURE``, MODE being eager or compiled, and
        ``infer.NETWORK.FIGURE``; seconds, cuboids a second, GB of 10⁹ bytes.
    """
    card = torch.cuda.get_device_name()
    figures: Figures = {**machine(PACKAGES), "card": card, "products_tflops": _products()}
    if peak := next((value for name, value in PEAKS.items() if name in card), None):
        figures["peak_tflops"] = peak
    for key, found in _all(sizes, methods, folder):
        figures |= {f"{key}.{name}": value for name, value in found.items()}
        if peak and "tflops" in found:
            figures[f"{key}.share_of_peak"] = found["tflops"] / peak
        say(f"{key}: {found['cuboids_per_s']:,.0f} cuboids/s")
        if json_file:
            write_json(figures, json_file)
    return figures


def _all(
    sizes: Sequence[str], methods: Sequence[str], folder: Path
) -> Iterator[tuple[str, dict[str, float]]]:
    for size in sizes:
        yield f"infer.{size}", _inference(size)
    for mode in MODES:
        for method in methods:
            for size in sizes:
                found = _training(size, method, folder, compiled=mode == "compiled")
                yield f"train.{method}.{size}.{mode}", found


def _training(size: Any, method: str, folder: Path, *, compiled: bool) -> dict[str, float]:
    """Measure training steps, on one batch and on a stream."""
    n = BATCHES[size]
    config = PretrainConfig(
        ("any",), out=folder, method=method, size=size, batch_size=n, compile=compiled
    )
    fabric = make_fabric(config.precision)
    network = Vit3dConfig(size=size, channels=2, projection=config.network.projection)
    trainer = Trainer(config, build_backbone(network, 0), fabric)
    stream = open_stream(trainer.objective, SpeedEffort(size=size, batch_size=n), folder)
    batches = stream.batches(0, 1 << 40)
    for _ in range(to_fill(stream)):
        next(batches)
    held = to_network(next(batches), stream.shape, fabric.device)
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    trainer.step(held)
    first = time.perf_counter() - start
    seconds = _seconds(lambda: trainer.step(held))
    share = _wait_share(lambda b: trainer.step(to_network(b, stream.shape, held.device)), batches)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        build_backbone(network, 0)(torch.zeros(1, 2, *network.cuboid_shape))
    # Forward and backward, as is usual: thrice the forward pass. An encoder that leaves out what is
    # masked computes less than all tokens, so its share of the peak is not told.
    tflops = {"tflops": 3 * 2 * n * counter.get_total_flops() / seconds / 1e12}
    return {
        "batch_size": n,
        "step_seconds": seconds,
        "first_step_seconds": first,
        "cuboids_per_s": n / seconds,
        **(tflops if method == "simclr" else {}),
        "memory_gb": torch.cuda.max_memory_allocated() / 1e9,
        "wait_share": share,
    }


def _wait_share(step: Callable[[Any], None], batches: Iterator[Any]) -> float:
    """Share of the time in which a step has to wait for its batch."""
    start, waited = time.perf_counter(), 0.0
    for _ in range(2 * _STEPS):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        step(batch)
    return waited / (time.perf_counter() - start)


def _inference(size: str) -> dict[str, float]:
    """Measure a classifier as `cubeclf-classify` computes it, raw counts on the card."""
    network = Vit3dConfig(size=size, channels=2, projection=128, pooled_beside=True)
    classifier = FastClassifier(network, HeadConfig()).settle(torch.device("cuda"), torch.bfloat16)
    cuboids = torch.full((1024, 2, *network.cuboid_shape), 300.0, device="cuda")
    cuboids += 30 * torch.randn_like(cuboids)
    torch.cuda.reset_peak_memory_stats()
    seconds = _seconds(lambda: classifier(cuboids))
    return {
        "batch_size": len(cuboids),
        "cuboids_per_s": len(cuboids) / seconds,
        "memory_gb": torch.cuda.max_memory_allocated() / 1e9,
    }


def _seconds(step: Callable[[], object]) -> float:
    """Seconds of a step, the median over rounds; some steps before do not count."""
    for _ in range(3):
        step()
    found = []
    for _ in range(_ROUNDS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(_STEPS):
            step()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - start) / _STEPS)
    return statistics.median(found)


def _products() -> float:
    """TFLOP/s of a product of two large matrices of random bfloat16."""
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / _seconds(lambda: a @ b) / 1e12


if __name__ == "__main__":
    sys.exit(main())
