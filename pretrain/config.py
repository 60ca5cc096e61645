"""Settings of `cubeclf-pretrain`; nothing here imports torch."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from cyclopts import Parameter

from cubeclf_core.config import PROJECTION, AugmentConfig
from cubeclf_core.errors import require
from pretrain.objectives import OBJECTIVES

Size = Literal["nano", "micro", "tiny", "small", "base"]
Preset = Literal["laptop", "gpu", "node"]
_HIDDEN = Parameter(show=False)
_EVERY, _TIMES = 250, 8  # a look or a checkpoint: every 250 steps, and eight times in a run


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What the network is like, beside its size.

    Parameters
    ----------
    patch_um
        z y x; a whole number of voxels, which divides the cuboid.
    voxel_size_um
        z y x; all data is resampled to it.
    positions
        sincos: fixed sines and cosines. learned: trained with the rest.
    register_tokens
        Further tokens that belong to no patch (arXiv:2309.16588).
    layer_scale
        Where LayerScale (arXiv:2103.17239) starts; none by default.
    projection
        Length of an embedding, which a small network makes of the pooled tokens; 0 for none. mae
        does not train it, and never has it.
    drop_path
        Highest rate of stochastic depth (arXiv:1603.09382). Above 0, runs on several devices no
        longer follow a run on one, as each draws its own.
    """

    patch_um: tuple[float, float, float] = (20.0, 10.0, 10.0)
    voxel_size_um: tuple[float, float, float] = (5.0, 1.0, 1.0)
    positions: Literal["sincos", "learned"] = "sincos"
    register_tokens: int = 0
    layer_scale: float | None = None
    projection: int = PROJECTION
    drop_path: float = 0.0


@dataclass(frozen=True)
class PretrainConfig:
    """Pretrain a 3D vision transformer on unlabelled brains.

    Cuboids are drawn from all brains alike (a brains file may give weights), and only from tissue;
    a brain with another voxel size is resampled. The backbone is written to
    OUT/exported/backbone.safetensors, for `cubeclf-finetune --backbone OUT`. OUT/progress.png shows
    how it goes. A run that was killed goes on with the same command and --resume. On several
    devices: torchrun --nproc-per-node 4 $(which cubeclf-pretrain) ….

    Settings of the objective (--settings.temperature 0.1), of the network (--network.drop-path 0.1)
    and of the augmentation (--augment.warp 0) may also stand in a --config file. --print-config
    lists the latter two; docs/pretraining.md has those of objectives.

    Parameters
    ----------
    brains
        OME-Zarr or zarr array (also by URL), folder of TIFF planes, TIFF stack, or a YAML brains
        file.
    out
        Folder of the run.
    preset
        Defaults for a laptop, one gpu, or a node with several; any flag or --config wins over them.
    method
        simclr: views of one object told from those of others. mae: masked autoencoding, the
        fastest. dino: self-distillation between views. dinov2: the same with masked tokens.
    size
        Of the network; nano and micro are for a laptop.
    steps
        Training steps.
    batch_size
        Cuboids a step, over all devices.
    learning_rate
        At its peak, after the warm-up.
    channels
        1 signal, 2 signal and background; by default as many as every brain has.
    voxel_size_um
        Z Y X of brains whose files do not say.
    candidate_share
        Of the cuboids, centred near a candidate: one of a brain's cells, whatever its type, or a
        bright spot where it has none.
    memory_gb
        For decoded regions and what is read ahead, in GiB.
    probe
        YAML brains file with cells, to see on the way how well the backbone tells cells from
        artefacts. Training never learns from its labels.
    logger
        tensorboard, wandb, mlflow: where to write metrics beside metrics.jsonl; none for nowhere.
    seed
        Of everything random.
    resume
        Go on with the run in OUT where it was stopped; starts one if there is none.
    overwrite
        Replace OUT if it exists.
    init
        Backbone to start from, as `cubeclf-finetune --backbone` takes it, timm:NAME for instance;
        random weights by default.
    weight_decay
        Of AdamW, on matrices only.
    weight_decay_end
        What it rises to along a cosine; stays as it is by default.
    warm_up
        Share of the steps in which the learning rate rises.
    clip
        Largest norm of the gradient.
    accumulate
        Parts into which a device's share of the batch is cut, for less memory.
    precision
        32-true, bf16-mixed, or auto: bf16 on a GPU that has it.
    compile
        Compile the network; worth its minute on a GPU.
    draws_per_chunk
        Cuboids that are drawn from a decoded chunk before it goes; fewer take longer to read.
    jitter_um
        Largest shift of a cuboid from its candidate, along each axis.
    log_every
        Steps between two lines of metrics.jsonl.
    monitor_every
        Steps between two looks at the embeddings, for collapse, shortcuts and --probe; by default
        an eighth of the run, at most 250.
    checkpoint_every
        Steps between two checkpoints to resume from; by default likewise.
    monitors
        Stop a run whose embeddings have collapsed.
    settings
        Of the objective.
    network
        What the network is like, beside its size.
    augment
        How strong the augmentation is.
    """

    brains: tuple[str, ...]
    _: KW_ONLY
    out: Path
    preset: Preset | None = None
    method: str = "simclr"
    size: Size = "tiny"
    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 1e-3
    channels: Literal[1, 2] | None = None
    voxel_size_um: tuple[float, float, float] | None = None
    candidate_share: float = 1.0
    memory_gb: float = 2.0
    probe: Path | None = None
    logger: tuple[str, ...] = ("tensorboard",)
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    init: Annotated[str | None, _HIDDEN] = None
    weight_decay: Annotated[float, _HIDDEN] = 0.05
    weight_decay_end: Annotated[float | None, _HIDDEN] = None
    warm_up: Annotated[float, _HIDDEN] = 0.1
    clip: Annotated[float, _HIDDEN] = 3.0
    accumulate: Annotated[int, _HIDDEN] = 1
    precision: Annotated[Literal["auto", "32-true", "bf16-mixed"], _HIDDEN] = "auto"
    compile: Annotated[bool, _HIDDEN] = False
    draws_per_chunk: Annotated[int, _HIDDEN] = 32
    jitter_um: Annotated[float, _HIDDEN] = 4.0
    log_every: Annotated[int, _HIDDEN] = 20
    monitor_every: Annotated[int | None, _HIDDEN] = None
    checkpoint_every: Annotated[int | None, _HIDDEN] = None
    monitors: Annotated[bool, _HIDDEN] = True
    settings: Annotated[dict[str, Any], _HIDDEN] = field(default_factory=dict)
    network: Annotated[NetworkConfig, _HIDDEN] = field(default_factory=NetworkConfig)
    augment: Annotated[AugmentConfig, _HIDDEN] = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        # A command line has hyphens and text where a YAML file has underscores and numbers.
        read = {name.replace("-", "_"): _read(value) for name, value in self.settings.items()}
        object.__setattr__(self, "settings", read)
        require(bool(self.brains), "BRAINS", "empty", "at least one")
        at_least_one = ("steps", "batch_size", "log_every", "monitor_every", "checkpoint_every")
        for name in (*at_least_one, "accumulate", "draws_per_chunk"):
            value = getattr(self, name)
            require(value is None or value >= 1, _flag(name), value, "at least 1")
        for name in ("learning_rate", "memory_gb", "clip"):
            value = getattr(self, name)
            require(math.isfinite(value) and value > 0, _flag(name), value, "a number above 0")
        for name in ("weight_decay", "weight_decay_end", "jitter_um"):
            value = getattr(self, name)
            fits = value is None or (math.isfinite(value) and value >= 0)
            require(fits, _flag(name), value, "0 or more")
        for name in ("candidate_share", "warm_up"):
            value = getattr(self, name)
            require(0 <= value <= 1, _flag(name), value, "0 to 1")
        require(0 <= self.seed < 2**32, "--seed", self.seed, "0 to 2³² - 1")
        require(
            self.method in OBJECTIVES, "--method", self.method, f"one of {', '.join(OBJECTIVES)}"
        )
        known = ("tensorboard", "wandb", "mlflow", "none")
        for name in self.logger:
            require(name in known, "--logger", name, f"one of {', '.join(known)}")
        either = not (self.resume and self.overwrite)
        require(
            either, "--resume with --overwrite", "given", "one of the two: go on, or begin anew"
        )
        cut = self.batch_size % self.accumulate == 0
        require(
            cut, "--accumulate", self.accumulate, f"a divisor of --batch-size {self.batch_size}"
        )

    def every(self, asked: int | None) -> int:
        """Steps between two looks, or two checkpoints; a short run has some of them too."""
        return min(_EVERY, max(1, self.steps // _TIMES)) if asked is None else asked


def _read(value: Any) -> Any:
    """Read a setting's text as YAML, in a list too; what is none the objective will refuse."""
    if isinstance(value, (list, tuple)):
        return [_read(item) for item in value]
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        return value


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
