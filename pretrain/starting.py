"""The network that a pretraining starts from: random weights, or those that `--init` names.

Whatever the weights, the network is the one that the settings ask for. Weights of our own were
trained in one network and are of little use in another, so there the two have to agree.
"""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from typing import Any

from cubeclf_core.backbones import build_backbone, is_2d, load_backbone
from cubeclf_core.errors import InputError
from cubeclf_core.vit import Vit3d, Vit3dConfig
from pretrain.config import PretrainConfig
from pretrain.objectives import load_objective, make_settings


def starting_backbone(config: PretrainConfig, channels: int) -> Vit3d:
    """Get the network to train, as the settings describe it.

    Parameters
    ----------
    config
        Of the run: `init`, `size`, `network` and, for random weights, `seed`.
    channels
        Of the cuboids that it will be given: 1 for signal alone, 2 with background.

    Returns
    -------
    Vit3d
        On the CPU, in training mode. Where 2D weights have LayerScale or register tokens, it has
        them too; all else is as the settings say.

    Raises
    ------
    InputError
        If there is no such backbone, or it is of another kind than the settings ask for.
    RunFailed
        If timm's weights cannot be downloaded.
    """
    wanted = network_config(config, channels)
    if config.init is None:
        return build_backbone(wanted, config.seed)
    found, _ = load_backbone(config.init, seed=config.seed, config=wanted)
    if is_2d(config.init):
        return found.train()
    _require_same(config, found.config, wanted)
    network = build_backbone(wanted, config.seed)  # for its drop path, which holds no weights
    weights = network.state_dict()
    kept = found.config.projection == wanted.projection  # else a new one: objectives differ in it
    weights |= {
        name: tensor
        for name, tensor in found.state_dict().items()
        if kept or not name.startswith("projection.")
    }
    network.load_state_dict(weights)
    return network


def network_config(config: PretrainConfig, channels: int) -> Vit3dConfig:
    """Describe the network that a run trains; what its objective leaves as it is, it has not."""
    wanted = Vit3dConfig(size=config.size, channels=channels, **asdict(config.network))
    objective = load_objective(config.method)
    projects = objective.projects(make_settings(objective, config.settings))
    return wanted if projects else dataclasses.replace(wanted, projection=0)


def _require_same(config: PretrainConfig, found: Vit3dConfig, wanted: Vit3dConfig) -> None:
    """Raise unless weights fit the network that is asked for; drop path and projection may not."""
    ours, theirs = asdict(wanted), asdict(found)
    free = ("drop_path", "projection")
    names = [name for name in ours if name not in free and ours[name] != theirs[name]]
    if not names:
        return
    has = ", ".join(f"{name} {_spell(theirs[name])}" for name in names)
    ask = ", ".join(f"{name} {_spell(ours[name])}" for name in names)
    raise InputError(
        f"--init {config.init} has {has}, but the settings ask for {ask}; "
        f"{_advice(config, {name: theirs[name] for name in names}, wanted)}"
    )


def _advice(config: PretrainConfig, theirs: dict[str, Any], wanted: Vit3dConfig) -> str:
    """Say what makes the settings agree with the weights, if anything can."""
    if "cuboid_shape" in theirs:
        return "cuboids of that shape cannot be had here: choose another backbone"
    if theirs.get("channels", 0) > wanted.channels and config.channels is None:
        return "not all brains have a background: choose another backbone, or other brains"
    settable = {field.name for field in dataclasses.fields(config.network)}
    flags = {
        name: f"--{'network.' if name in settable else ''}{name.replace('_', '-')}"
        for name in theirs
    }
    return "add " + " ".join(f"{flags[name]} {_spell(value)}" for name, value in theirs.items())


def _spell(value: object) -> str:
    """Write a value as the command line takes it."""
    if isinstance(value, tuple):
        return " ".join(f"{part:g}" for part in value)
    return "none" if value is None else str(value)
