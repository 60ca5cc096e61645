"""All measurements of ``python -m benchmarks.pretraining``, in turn."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

from benchmarks.learning.blocks import (
    CLOSED,
    SEEN,
    Block,
    count_opening,
    data_folder,
    open_block,
    read_block,
    write_brains_file,
)
from benchmarks.learning.config import LABELLED, Effort, LearningConfig
from benchmarks.learning.contenders import (
    Frozen,
    Rules,
    principal_components,
    unlabelled_cuboids,
)
from benchmarks.learning.finetuned import Finetuned, embed_blocks, vectors
from benchmarks.learning.protocols import Result, Task, make_tasks, summarise, try_out
from benchmarks.learning.recipes import RECIPES
from benchmarks.learning.report import findings, plot, tables
from benchmarks.learning.training_speed import training_speed
from benchmarks.learning.trainings import Training, carry_out, network_of, plan, settings_of
from benchmarks.output import Figures, machine, working_folder, write_files
from cubeclf_core.backbones import build_backbone, load_backbone
from cubeclf_core.brains import load_brains
from cubeclf_core.console import say
from cubeclf_core.errors import require
from cubeclf_core.vit import Vit3d, Vit3dConfig
from finetune.comparing.forest import radial_means
from pretrain.config import NetworkConfig, PretrainConfig

PACKAGES = ("torch", "numpy", "scikit-learn", "timm", "lightly", "cubeclf")


def measure(config: LearningConfig, effort: Effort) -> Figures:
    """Pretrain, measure, print the tables, and write the plot and the JSON file.

    Parameters
    ----------
    config
        What the user said.
    effort
        How much to measure.

    Raises
    ------
    InputError
        If the real data is not there, or settings make no sense.
    RunFailed
        If a pretraining fails.
    """
    start = time.monotonic()
    effort = _check(config, effort)
    data = data_folder()
    with working_folder(config.folder) as given:
        folder = given.resolve()
        files = {seen: write_brains_file(data, seen, folder) for seen in SEEN}
        trainings = plan(config.methods, files, folder, effort)
        carry_out(trainings, reuse=config.reuse, side_by_side=os.cpu_count() or 1)
        opened = count_opening(folder, config.blocks, config.methods)
        results = _try_all(config.blocks, data, files, trainings, effort, folder)
        figures: Figures = {
            **machine(PACKAGES),
            "blocks": " ".join(config.blocks),
            f"opened_{CLOSED}": opened,
            "labels": effort.labels,
            "draws": effort.draws,
            "copies": effort.copies,
            "finetune_draws": effort.finetune_draws,
            "default": _default_method(),
            **_described(trainings),
            **summarise(results),
            **training_speed(effort.speed, folder),
        }
    seconds = figures["seconds"] = time.monotonic() - start
    print(tables(figures, config.blocks), "", *findings(figures), sep="\n")
    told = f"Labels of {CLOSED} were read {opened} times, "
    told += "by the count in the folder." if config.folder else "this time; --folder keeps count."
    print(f"{told} All this took {seconds / 60:.0f} min.", flush=True)
    plotted = config.plot or (config.json or Path("pretraining.json")).with_suffix(".png")
    drawn = plot(figures, config.blocks)
    write_files(figures, drawn, json_file=config.json, plot=plotted)
    return figures


def _check(config: LearningConfig, effort: Effort) -> Effort:
    """Check what the user said, and take it over into the effort."""
    names = ", ".join(LABELLED)
    fits = set(config.blocks) <= set(LABELLED) and len(set(config.blocks)) == len(config.blocks)
    require(fits and len(config.blocks) > 1, "--blocks", " ".join(config.blocks), f"two of {names}")
    known = bool(config.methods) and set(config.methods) <= set(RECIPES)
    require(known, "--methods", " ".join(config.methods), f"some of {', '.join(RECIPES)}")
    require(config.seeds is None or config.seeds > 0, "--seeds", config.seeds, "at least 1")
    scale = config.steps_scale
    require(scale is None or scale > 0, "--steps-scale", scale, "above 0")
    overrides = dict(effort.overrides)
    if config.patch_um is not None:
        overrides["network"] = NetworkConfig(patch_um=config.patch_um)
    return replace(
        effort,
        overrides=overrides,
        seeds=effort.seeds if config.seeds is None else config.seeds,
        steps_scale=effort.steps_scale if scale is None else scale,
    )


def _try_all(
    names: Sequence[str],
    data: Path,
    files: Mapping[str, Path],
    trainings: Sequence[Training],
    effort: Effort,
    folder: Path,
) -> list[Result]:
    """Let all contenders do all tasks, on the blocks that are open; no other's labels are read."""
    network = network_of(settings_of(_default_method(), effort))
    blocks = {}
    for name in names:
        say(f"reading block {name}")
        blocks[name] = read_block(open_block(data, name, folder), network, effort.candidates)
    tasks = make_tasks(blocks, labels=effort.labels, draws=effort.draws)
    results = _baselines(tasks, blocks, network, files, effort)
    results += _networks(tasks, blocks, network, trainings, effort)
    with (folder / "results.jsonl").open("w", encoding="utf-8") as lines:
        for result in results:
            lines.write(json.dumps(asdict(result)) + "\n")
    return results


def _baselines(
    tasks: Sequence[Task],
    blocks: Mapping[str, Block],
    network: Vit3dConfig,
    files: Mapping[str, Path],
    effort: Effort,
) -> list[Result]:
    """Try out what is not a network."""
    say("baselines: principal components, radial forest, contrast, density")
    components = {}
    for seen, file in files.items():
        unlabelled = unlabelled_cuboids(load_brains([file]), network, effort.unlabelled)
        components[seen] = principal_components(unlabelled, blocks)
    rules = Rules(blocks, network.voxel_size_um)
    radial = {
        name: radial_means(block.cuboids, network.voxel_size_um) for name, block in blocks.items()
    }
    shells = Frozen(blocks, dict.fromkeys(SEEN, radial))
    principal = Frozen(blocks, components)
    results = try_out("pca", principal.linear, tasks, blocks)
    results += try_out("pca", principal.knn, tasks, blocks, way="_knn")
    for name, rule in (("contrast", rules.contrast), ("density", rules.density)):
        results += try_out(name, rule, tasks, blocks)
    for seed in range(effort.untrained_seeds):
        scorer = partial(shells.forest, seed=seed)
        results += try_out("forest", scorer, tasks, blocks, seed=seed)
    return results


def _networks(
    tasks: Sequence[Task],
    blocks: Mapping[str, Block],
    network: Vit3dConfig,
    trainings: Sequence[Training],
    effort: Effort,
) -> list[Result]:
    """Try out networks: frozen, and trained on with the labels of one's own brain."""
    few = [t for t in tasks if t.protocol == "own" and t.draw < effort.finetune_draws]
    results: list[Result] = []
    for name, seed, makers in _backbones(network, trainings, effort):
        say(f"{name}, seed {seed}: a head on frozen features, and k-NN")
        made = {make: make() for make in dict.fromkeys(makers.values())}
        said = {make: embed_blocks(made[make], blocks, effort.copies) for make in made}
        known = {seen: said[make] for seen, make in makers.items()}
        head = Finetuned(blocks, makers, seed, {}, known=known)
        results += try_out(name, head, tasks, blocks, seed=seed)
        compared = {make: vectors(said[make], backbone) for make, backbone in made.items()}
        near = Frozen(blocks, {seen: compared[make] for seen, make in makers.items()})
        results += try_out(name, near.knn, tasks, blocks, seed=seed, way="_knn")
        if seed < effort.seeds and name != "untrained_pooled":
            say(f"{name}, seed {seed}: fine-tuning, {len(few)} times")
            settings = {
                "epochs": effort.finetune_epochs,
                "batch_size": effort.finetune_batch,
            }
            tuned = Finetuned(blocks, makers, seed, settings, pretrained=name != "untrained")
            results += try_out(name, tuned, few, blocks, seed=seed, way="_finetuned")
    return results


def _backbones(
    network: Vit3dConfig, trainings: Sequence[Training], effort: Effort
) -> Iterator[tuple[str, int, Mapping[str, Callable[[], Vit3d]]]]:
    """Give name, seed, and what makes a fresh backbone that has seen a key of `SEEN`."""
    unprojected = replace(network, projection=0)
    for name, config in (("untrained", network), ("untrained_pooled", unprojected)):
        for seed in range(effort.untrained_seeds):
            yield name, seed, dict.fromkeys(SEEN, partial(build_backbone, config, seed))
    runs = {(t.method, t.config.seed, t.seen): partial(_load, t.out) for t in trainings}
    for method, seed in dict.fromkeys((t.method, t.config.seed) for t in trainings):
        yield method, seed, {seen: runs[method, seed, seen] for seen in SEEN}


def _load(run: Path) -> Vit3d:
    return load_backbone(str(run))[0]


def _described(trainings: Sequence[Training]) -> Figures:
    """Say what each objective was trained with, and how long."""
    figures: Figures = {}
    for method in dict.fromkeys(t.method for t in trainings):
        own = [t for t in trainings if t.method == method]
        config = own[0].config
        settings = {
            name: value
            for name, value in asdict(config).items()
            if name not in ("brains", "out", "seed", "overwrite")
        }
        figures |= {
            f"{method}.seconds": statistics.mean(t.seconds for t in own),
            f"{method}.cuboids": config.steps * config.batch_size,
            f"{method}.seeds": len({t.config.seed for t in own}),
            f"{method}.settings": json.dumps(settings, default=str),
        }
    return figures


def _default_method() -> str:
    """Name the objective that `cubeclf-pretrain` uses unless told otherwise."""
    (field,) = (field for field in fields(PretrainConfig) if field.name == "method")
    return str(field.default)
