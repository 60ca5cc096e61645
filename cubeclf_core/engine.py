"""What every training loop needs and no method knows of: devices, precision, ranks, resuming.

State is kept as a weights file like any other (safetensors and JSON, no pickle), written beside its
place and renamed: a kill in the middle of writing, or a full disk, leaves the last one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.precision.amp import MixedPrecision
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from cubeclf_core.checkpoint import Header, load_checkpoint, save_checkpoint
from cubeclf_core.errors import CheckpointError, RunFailed
from cubeclf_core.network_configs import read_backbone_config
from cubeclf_core.signals import StopRequest

T = TypeVar("T")
_MODEL, _OPTIMIZER = "model.", "optimizer."
DEVICE_KINDS = ("cuda", "mps", "cpu")


def device_kind() -> str:
    """What networks compute on here, one of `DEVICE_KINDS`: precision differs."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def make_fabric(precision: str, *, alone: bool = False) -> Fabric:
    """Set up devices: those that torchrun or SLURM gave to this process, else one.

    Parameters
    ----------
    precision
        "32-true", "bf16-mixed", or "auto": bf16 on a GPU that has it.
    alone
        Take one device whoever started this process: its work is shared out in other ways.
    """
    launched = int(os.environ.get("LOCAL_WORLD_SIZE", 0))  # by torchrun, on this machine
    total = int(os.environ.get("WORLD_SIZE", 0))
    tasks = int(os.environ.get("SLURM_NTASKS", 0)) if "SLURM_PROCID" in os.environ else 0
    nodes = int(os.environ.get("SLURM_NNODES", 1))
    if alone:
        devices, nodes = 1, 1
    elif launched:
        devices, nodes = launched, max(1, total // launched)
    else:
        devices, nodes = (tasks // nodes, nodes) if tasks > 1 else (1, 1)
    cuda = torch.cuda.is_available()
    if precision == "auto":
        precision = "bf16-mixed" if cuda and torch.cuda.is_bf16_supported() else "32-true"
    plugins: list[Any] = [LightningEnvironment()] if alone else []
    if precision == "bf16-mixed":
        plugins.append(_KeepsCounts("bf16-mixed", "cuda" if cuda else "cpu"))
    # Buffers are the same on all ranks, as an objective moves them by what it gathered.
    strategy = DDPStrategy(forward_sync_buffers=False) if devices * nodes > 1 else "auto"
    fabric = Fabric(
        accelerator="auto",
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        plugins=plugins,
    )
    fabric.launch()
    return fabric


class _KeepsCounts(MixedPrecision):
    """Mixed precision for the networks alone: raw counts have more digits than bfloat16."""

    def convert_input(self, data: Any) -> Any:
        """Leave the input as it is."""
        return data


def asked_anywhere(stop: StopRequest, fabric: Fabric) -> bool:
    """Whether any rank has been asked to stop; all ranks have to call this together."""
    if fabric.world_size == 1:
        return bool(stop)
    asked = torch.tensor(float(bool(stop)), device=fabric.device)
    dist.all_reduce(asked, dist.ReduceOp.MAX)
    return bool(asked.item())


def raise_on_all(fabric: Fabric, error: Exception | None) -> None:
    """Raise what rank 0 found on all ranks, so that none waits for one that has left.

    Parameters
    ----------
    fabric
        All ranks have to call this together.
    error
        Of rank 0; that of others does not count.
    """
    if fabric.world_size > 1:
        found = [error]
        dist.broadcast_object_list(found, src=0)
        error = found[0]
    if error is not None:
        raise error


def on_rank_0(fabric: Fabric, do: Callable[[], T]) -> T | None:
    """Do something on rank 0, and raise on all ranks what it raises there.

    Returns
    -------
    object
        What it returned, on rank 0.
    """
    result: T | None = None
    error: Exception | None = None
    if fabric.is_global_zero:
        try:
            result = do()
        except Exception as found:
            error = found
    raise_on_all(fabric, error)
    return result


def gather_objects(fabric: Fabric, mine: T) -> list[T]:
    """What each rank has, by rank; all ranks have to call this together."""
    if fabric.world_size == 1:
        return [mine]
    found: list[Any] = [None] * fabric.world_size
    dist.all_gather_object(found, mine)
    return found


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Mapping[str, Any],
    backbone: Mapping[str, Any],
) -> None:
    """Write all that a run needs to go on exactly, whole or not at all.

    Parameters
    ----------
    path
        A `.safetensors` file.
    model, optimizer
        Unwrapped.
    progress
        What goes into JSON: the step, the stream's state, the monitors'.
    backbone
        The config of the network, for the header.

    Raises
    ------
    RunFailed
        If it cannot be written; what stood at `path` is still there.
    """
    tensors = {_MODEL + name: tensor for name, tensor in model.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"{_OPTIMIZER}{number}.{key}": value for key, value in values.items()}
    header = Header(
        kind="training",
        backbone=dict(backbone),
        training=dict(progress),
        normalisation=read_backbone_config(dict(backbone)).normalisation,
    )
    try:
        save_checkpoint(path, header, tensors)
    except Exception as error:  # safetensors has errors of its own for a full disk
        kept = "the one before it is kept" if path.exists() else "there is none before it"
        raise RunFailed(f"the checkpoint {path} could not be written ({error}); {kept}") from error


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Bring a model and its optimiser to where `save_state` found them; returns `progress`.

    Raises
    ------
    CheckpointError
        If the file cannot be read, or belongs to another model.
    """
    header, tensors = load_checkpoint(path, "training")
    try:
        weights = {k.removeprefix(_MODEL): v for k, v in tensors.items() if k.startswith(_MODEL)}
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path} is of another network or objective") from error
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(_OPTIMIZER):
            number, key = name.removeprefix(_OPTIMIZER).split(".")
            # A copy: the file is mapped, and no system likes a mapped file to be replaced.
            state.setdefault(int(number), {})[key] = tensor.clone()
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return header.training
