"""The run of `cubeclf-pretrain`: brains in, backbone out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from lightning_fabric import Fabric
from matplotlib.figure import Figure
from safetensors import SafetensorError

from cubeclf_core.backbones import save_backbone
from cubeclf_core.brains import Brain, load_brains
from cubeclf_core.cli import to_yaml
from cubeclf_core.draws import Draws
from cubeclf_core.engine import load_state, make_fabric, on_rank_0
from cubeclf_core.errors import InputError, RunFailed, VolumeError
from cubeclf_core.files import check_output, remove
from cubeclf_core.model_card import model_card
from cubeclf_core.plots import tissue_map
from cubeclf_core.runs import RunFolder, check_same_settings
from cubeclf_core.stream import CuboidStream
from cubeclf_core.surroundings import GROUP
from cubeclf_core.tissue import Survey, examine, overview
from cubeclf_core.tracking import check_trackers, open_trackers
from cubeclf_core.vit import Vit3d, Vit3dConfig
from pretrain.config import PretrainConfig
from pretrain.fit import CHECKPOINT, Fit
from pretrain.monitors import Monitors
from pretrain.objective import Objective
from pretrain.objectives import load_objective, make_settings
from pretrain.pictures import token_components
from pretrain.probes import Probe
from pretrain.starting import starting_backbone
from pretrain.watch import Watch

_MAY_CHANGE = {  # from the run that is resumed; none of these changes what is learned
    *("out", "resume", "overwrite", "logger", "log_every", "monitor_every", "checkpoint_every"),
    *("probe", "preset", "monitors"),
    "steps",  # a run may go on for longer, at the rates of the longer schedule
}


def pretrain(config: PretrainConfig) -> None:
    """Run one pretraining to its end, or to where it is asked to stop, and export the backbone.

    Raises
    ------
    InputError
        If the settings or the brains cannot be used; nothing has been written then.
    Stopped
        If a signal asked for it.
    RunFailed
        If the loss is no longer finite, embeddings collapsed, or the disk is full.
    """
    fabric = make_fabric(config.precision)
    loggers = [name for name in config.logger if name != "none"]
    check_trackers(loggers)
    brains = load_brains(config.brains, voxel_size_um=config.voxel_size_um)
    resumed = config.resume and (config.out / CHECKPOINT).exists()
    on_rank_0(fabric, lambda: _check_folder(config, brains, resumed=resumed))
    backbone = starting_backbone(config, _channels(config, brains))
    objective = build_objective(config, backbone)
    _check_batch(config, objective, fabric.world_size)
    probe = on_rank_0(fabric, lambda: _probe(config, backbone.config))
    fabric.to_device(objective)  # before the optimiser, whose state goes where the weights are
    optimizer = _optimizer(config, objective)
    told = load_state(config.out / CHECKPOINT, objective, optimizer) if resumed else {}
    if told and told["step"] > config.steps:
        raise InputError(
            f"--steps is {config.steps}, but the run in {config.out} has taken {told['step']}; "
            "resume with as many or more"
        )
    surveys, pictures = _look_over(brains, backbone.config.channels)
    stream = _stream(config, brains, objective, surveys, fabric, told.get("stream"))
    fit = Fit(
        config=config,
        fabric=fabric,
        objective=objective,
        optimizer=optimizer,
        stream=stream,
        run=RunFolder(config.out, config, resume=resumed),
        monitors=Monitors(config.steps, enabled=config.monitors),
        export=_export,
    )
    if resumed:
        fit.restore(told)
    _introduce(fit, brains, surveys, pictures)
    try:
        on_rank_0(fabric, lambda: _open_eyes(fit, probe, loggers, told))
        fit.train()
        _finish(fit)
    except VolumeError as error:  # valid input so far: it failed while running
        raise RunFailed(f"stopped at step {fit.done}: {error}") from error
    except (OSError, SafetensorError) as error:  # a full disk, mostly
        again = "make room and go on with --resume"
        raise RunFailed(f"stopped at step {fit.done}: {error}; {again}") from error
    finally:
        fit.list_faults()
        for tracker in fit.trackers:
            tracker.close()


def _open_eyes(
    fit: Fit, probe: Probe | None, loggers: Sequence[str], told: Mapping[str, Any]
) -> None:
    """Give the run what looks at it: the watch over embeddings, and the trackers."""
    config = fit.config
    untrained = starting_backbone(config, fit.stream.n_channels)
    fit.watch = Watch(fit.stream, untrained, probe)
    if told.get("probe") == str(config.probe):
        fit.watch.best_probe = float(told["best_probe"])
    try:
        fit.trackers = open_trackers(
            loggers,
            config.out,
            asdict(config),
            config.out.resolve().name,
            resumed_at=fit.done if told else None,
        )
    except InputError:
        if not told:  # nothing has begun: the mended command shall find no folder
            remove(config.out)
        raise


def _check_batch(config: PretrainConfig, objective: Objective, n_ranks: int) -> None:
    """Raise unless the batch can be cut into equal parts that are large enough."""
    parts = n_ranks * config.accumulate
    if config.batch_size % parts:
        raise InputError(
            f"--batch-size {config.batch_size} cannot be cut into {parts} equal parts "
            f"({n_ranks} devices, --accumulate {config.accumulate})"
        )
    if config.batch_size // parts < objective.least_batch:
        raise InputError(
            f"--batch-size {config.batch_size} leaves {config.batch_size // parts} cuboids at a "
            f"time; {config.method} needs {objective.least_batch}"
        )


def _check_folder(config: PretrainConfig, brains: Sequence[Brain], *, resumed: bool) -> None:
    """Raise unless OUT can be made anew, or is the run that is to go on."""
    inputs = [path for brain in brains for path in brain.paths]
    written = config.out / "config.yaml"
    ended = (config.out / "exported" / "backbone.safetensors").exists()
    begun = config.resume and written.exists() and not ended
    if not resumed and not begun:
        check_output(config.out, overwrite=config.overwrite, inputs=inputs)
        return
    if not resumed:  # killed before its first checkpoint: it is begun anew, if it is this very run
        check_output(config.out, overwrite=True, inputs=inputs)
    check_same_settings(config.out, config, _MAY_CHANGE)


def _channels(config: PretrainConfig, brains: Sequence[Brain]) -> int:
    common = min(brain.volume.n_channels for brain in brains)
    if config.channels is None:
        return min(common, 2)
    if config.channels > common:
        lacking = next(b.name for b in brains if b.volume.n_channels < config.channels)
        raise InputError(f"--channels {config.channels}, but brain {lacking} has no background")
    return config.channels


def build_objective(config: PretrainConfig, backbone: Vit3d) -> Objective:
    """Make the objective that the config names; its own weights depend on the seed alone."""
    kind = load_objective(config.method)
    settings = make_settings(kind, config.settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 1)
        objective: Objective = kind(backbone, settings, config.augment)
    return objective


def _optimizer(config: PretrainConfig, objective: Objective) -> torch.optim.Optimizer:
    kept_large = set(objective.exported.no_weight_decay())  # positions and tokens, by timm's list
    groups: list[dict[str, Any]] = [
        {"params": [], "decays": True},
        {"params": [], "decays": False},
    ]
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and name.rpartition(".")[2] not in kept_large
            groups[0 if decays else 1]["params"].append(parameter)
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=config.weight_decay, betas=(0.9, 0.95))


def _stream(
    config: PretrainConfig,
    brains: Sequence[Brain],
    objective: Objective,
    surveys: Sequence[Survey],
    fabric: Fabric,
    state: Mapping[str, Any] | None,
) -> CuboidStream:
    network = objective.exported.config
    return CuboidStream(
        brains,
        shape=objective.canvas_shape,
        voxel_size_um=network.voxel_size_um,
        n_channels=network.channels,
        batch_size=config.batch_size,
        seed=config.seed,
        weights=[brain.weight for brain in brains],
        candidate_share=config.candidate_share,
        jitter_um=config.jitter_um,
        draws_per_chunk=config.draws_per_chunk,
        memory_bytes=round(config.memory_gb * (1 << 30)),
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        surveys=surveys,
        state=state,
    )


def _probe(config: PretrainConfig, network: Vit3dConfig) -> Probe | None:
    if config.probe is None:
        return None
    brains = load_brains([str(config.probe)], voxel_size_um=config.voxel_size_um)
    return Probe(brains, network, seed=config.seed)


def _look_over(brains: Sequence[Brain], n_channels: int) -> tuple[list[Survey], list[Figure]]:
    """Survey brains and draw where their tissue is; one overview at a time is in memory."""
    surveys, pictures = [], []
    for brain in brains:
        seen = overview(brain.volume, n_channels)
        surveys.append(examine(seen))
        pictures.append(tissue_map(brain.name, seen.voxels, surveys[-1].mask, seen.voxel_size_um))
    return surveys, pictures


def _introduce(
    fit: Fit, brains: Sequence[Brain], surveys: Sequence[Survey], pictures: Sequence[Figure]
) -> None:
    """Say and write down what the run is about to do, and on what."""
    config, run = fit.config, fit.run
    if fit.done:
        run.tell(f"resuming  after {fit.done} of {config.steps} steps")
        return
    where = f"{fit.fabric.world_size} × {fit.fabric.device.type}"
    names = ", ".join(brain.name for brain in brains)
    run.tell(f"pretraining {config.method} {config.size} on {names} ({where})")
    run.tell(f"stream    {fit.stream.describe()}")
    at_a_time = config.batch_size // fit.fabric.world_size // config.accumulate
    if fit.objective.compares_views and config.augment.surroundings and at_a_time % GROUP:
        run.tell(
            f"warning   {at_a_time} cuboids at a time are no multiple of {GROUP}: fewer or no "
            "surroundings are exchanged, and more is learned from these"
        )
    for brain, seen, picture in zip(brains, surveys, pictures, strict=True):
        path = run.save_figure(f"figures/tissue_{brain.name}.png", picture)
        run.tell(f"tissue    {seen.statistics.tissue:.0%} of {brain.name}: {path}")
    told = {brain.name: asdict(s.statistics) for brain, s in zip(brains, surveys, strict=True)}
    run.write_json("statistics.json", told)


def _finish(fit: Fit) -> None:
    """Export the backbone, draw the pictures, and say how it compares with the untrained one."""
    if fit.watch is None:
        return
    run, objective = fit.run, fit.objective
    found = {"trained": fit.watch.found, "untrained": fit.watch.untrained}
    before = "before this training" if fit.config.init else "untrained"
    run.write_json("metrics.json", found)
    _export(fit, "backbone")
    objective.eval()
    sections: dict[str, Figure] = {}
    with torch.no_grad():
        device = fit.fabric.device
        draws = Draws(fit.config.seed, fit.config.steps, range(6), device)
        if picture := objective.picture(fit.watch.cuboids[:6].to(device), draws):
            sections["figures/reconstruction.png"] = picture
        try:
            brain, seen = fit.stream.brains[0], fit.stream.surveys[0]
            tokens = token_components(objective.exported, brain.volume, seen)
            sections["figures/tokens.png"] = tokens
        except VolumeError as error:  # a damaged chunk there shall not cost the run
            run.tell(f"warning   no picture of the tokens: {error}")
    for name, figure in sections.items():
        path = run.save_figure(name, figure)
        run.tell(f"picture   {path}")
        for tracker in fit.trackers:
            tracker.figure(fit.done, path.stem, path)
    run.tell(f"picture   {run.path / 'progress.png'}")
    for name in ("rank_me_class", "rank_me"):
        what = "class token" if name.endswith("class") else "pooled"
        trained, untrained = (found[which][name] for which in ("trained", "untrained"))
        run.tell(f"RankMe    {what} {trained:.1f} ({before} {untrained:.1f})")
    if "probe_linear_auc" in fit.watch.found:
        trained, untrained = (
            found[which]["probe_linear_auc"] for which in ("trained", "untrained")
        )
        run.tell(f"probe     linear AUC {trained:.3f} ({before} {untrained:.3f})")
        if not (run.exported / "best_probe.safetensors").exists():
            run.tell(f"          no look was better than {before}: there is no best_probe")
    run.tell(f"backbone  {run.exported / 'backbone.safetensors'}")


def _export(fit: Fit, name: str) -> None:
    """Write the backbone, its config, and a card that says what it is."""
    run, backbone, config = fit.run, fit.objective.exported, fit.config
    names = [brain.name for brain in fit.stream.brains]
    account = {
        "objective": config.method,
        "steps": fit.done,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "data": names,
    }
    save_backbone(run.exported / f"{name}.safetensors", backbone, account)
    run.write_json(f"exported/{name}.json", dataclasses.asdict(backbone.config))
    assert fit.watch is not None  # only rank 0 exports
    fit.draw("exported/progress.png")  # goes along where the folder is copied
    card = model_card(
        backbone,
        fit.stream.brains,
        weights=f"{name}.safetensors",
        settings=to_yaml(config),
        training={
            "objective": config.method,
            "steps": fit.done,
            "cuboids seen": fit.done * config.batch_size,
            "wall_time_s": fit.seconds,
            "device": f"{fit.fabric.world_size} × {fit.device_name()}",
        },
        results=fit.watch.found,
        untrained=fit.watch.untrained,
        before="before this training" if config.init else "untrained",
        pictures={"progress": "progress.png"},
    )
    run.write_text(f"exported/{'README' if name == 'backbone' else name}.md", card)
