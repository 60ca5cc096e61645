"""Settings of `cubeclf-pretrain`; nothing here imports torch."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from cubeclf_core.errors import require

Size = Literal["nano", "micro", "tiny", "small", "base"]


@dataclass(frozen=True, kw_only=True)
class MaeConfig:
    """Settings of masked autoencoding.

    Parameters
    ----------
    mask_ratio
        Share of the patches that the encoder does not see.
    target
        cuboid: voxels standardised over the cuboid, which keep how bright a patch is among its
        neighbours. patch: over each patch and channel, as the paper has it; where single photons
        count, that is mostly noise.
    decoder_width
        Width of the decoder; divisible by 6 and by 3 heads.
    decoder_depth
        Blocks of the decoder.
    """

    mask_ratio: float = 0.75
    target: Literal["cuboid", "patch"] = "cuboid"
    decoder_width: int = 96
    decoder_depth: int = 1

    def __post_init__(self) -> None:
        require(0.05 <= self.mask_ratio <= 0.95, "mae.mask_ratio", self.mask_ratio, "0.05 to 0.95")
        width = self.decoder_width
        require(width > 0 and width % 6 == 0, "mae.decoder_width", width, "a multiple of 6")
        require(self.decoder_depth >= 1, "mae.decoder_depth", self.decoder_depth, "at least 1")


@dataclass(frozen=True, kw_only=True)
class DinoConfig:
    """Settings of DINO.

    Parameters
    ----------
    prototypes
        Width K of the projection head's output; small data wants few.
    local_views
        Number of small views of each canvas.
    local_patches
        Size of a local view in patches, z y x.
    canvas_margin
        How many voxels (z y x) the canvas, out of which views are cut, exceeds the cuboid.
    teacher_temperature
        At the start and, after the warm-up, to the end.
    momentum
        Of the teacher, at the start; it rises to 1 along a cosine.
    koleo_weight
        Of the term that keeps class tokens apart.
    freeze_last_layer
        Share of the steps, at the start, in which the head's last layer stays as it is.
    """

    prototypes: int = 2048
    local_views: int = 4
    local_patches: tuple[int, int, int] = (3, 3, 3)
    canvas_margin: tuple[int, int, int] = (4, 10, 10)
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    momentum: float = 0.99
    koleo_weight: float = 0.1
    freeze_last_layer: float = 0.05

    def __post_init__(self) -> None:
        require(self.prototypes >= 2, "dino.prototypes", self.prototypes, "at least 2")
        require(self.local_views >= 0, "dino.local_views", self.local_views, "0 or more")
        patches, margin = self.local_patches, self.canvas_margin
        require(
            min(patches) >= 1 and max(patches) <= 5, "dino.local_patches", patches, "1 to 5 each"
        )
        require(min(margin) >= 0, "dino.canvas_margin", margin, "0 or more each")
        temperature = self.teacher_temperature
        require(min(temperature) > 0, "dino.teacher_temperature", temperature, "above 0")
        require(0 <= self.momentum < 1, "dino.momentum", self.momentum, "at least 0 and below 1")
        require(self.koleo_weight >= 0, "dino.koleo_weight", self.koleo_weight, "0 or more")


@dataclass(frozen=True)
class PretrainConfig:
    """Pretrain a 3D vision transformer on unlabelled brains.

    Cuboids are drawn from all brains alike (a brains file may give weights), and only from tissue;
    a brain with another voxel size is resampled. The
    backbone is written to OUT/exported/backbone.safetensors, for `cubeclf-finetune --backbone OUT`.
    Settings of an objective, such as --mae.mask-ratio 0.6 or --dino.prototypes 512, are listed by
    --print-config and may stand in a --config file.

    Parameters
    ----------
    brains
        OME-Zarr or zarr array (also by URL), folder of TIFF planes, TIFF stack, or a YAML brains
        file.
    out
        Folder of the run.
    method
        mae: masked autoencoding, the faster one. dino: self-distillation between views.
    size
        Of the network; nano and micro are for a laptop.
    steps
        Training steps.
    batch_size
        Cuboids a step.
    learning_rate
        At its peak, after the warm-up.
    weight_decay
        Of AdamW, on matrices only.
    channels
        1 signal, 2 signal and background; by default as many as every brain has.
    voxel_size_um
        Z Y X of brains whose files do not say.
    candidate_share
        Of the cuboids, centred near a candidate: one of a brain's cells, whatever its type, or a
        bright spot where it has none.
    memory_gb
        For decoded regions and what is read ahead, in GiB.
    draws_per_chunk
        Cuboids that are drawn from a decoded chunk before it goes; fewer take longer to read.
    precision
        32-true, or bf16-mixed where the device is fast at it.
    seed
        Of everything random.
    log_every
        Steps between two lines of metrics.jsonl.
    overwrite
        Replace OUT if it exists.
    mae
        Settings of masked autoencoding.
    dino
        Settings of DINO.
    """

    brains: tuple[str, ...]
    _: KW_ONLY
    out: Path
    method: Literal["mae", "dino"] = "mae"
    size: Size = "tiny"
    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    channels: Literal[1, 2] | None = None
    voxel_size_um: tuple[float, float, float] | None = None
    candidate_share: float = 0.5
    memory_gb: float = 2.0
    draws_per_chunk: Annotated[int, Parameter(show=False)] = 32
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    seed: int = 0
    log_every: int = 20
    overwrite: bool = False
    mae: Annotated[MaeConfig, Parameter(show=False)] = field(default_factory=MaeConfig)
    dino: Annotated[DinoConfig, Parameter(show=False)] = field(default_factory=DinoConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every"):
            value = getattr(self, name)
            require(value >= 1, f"--{name.replace('_', '-')}", value, "at least 1")
        alone = self.method == "dino" and self.batch_size < 2
        require(not alone, "--batch-size", 1, "at least 2, as DINO compares the cuboids of a batch")
        rate, decay, share = self.learning_rate, self.weight_decay, self.candidate_share
        require(math.isfinite(rate) and rate > 0, "--learning-rate", rate, "a number above 0")
        require(math.isfinite(decay) and decay >= 0, "--weight-decay", decay, "0 or more")
        require(0 <= share <= 1, "--candidate-share", share, "0 to 1")
        memory = self.memory_gb
        require(math.isfinite(memory) and memory > 0, "--memory-gb", memory, "a number above 0")
        draws = self.draws_per_chunk
        require(draws >= 1, "--draws-per-chunk", draws, "at least 1")
        require(self.seed >= 0, "--seed", self.seed, "0 or more")
