"""The run of `cubeclf-compare`: contenders, labels and seeds in; tables, pictures and a page out.

First missing backbones are pretrained, then what frozen ones say of all labels is computed, then
come the cells of the grid. All of it is kept in files that are named by what they depend on, so a
run that was killed goes on, and a plan with another contender or budget takes up what is there.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import torch

from cubeclf_core.console import progress, say
from cubeclf_core.errors import InputError, RunFailed, Stopped
from cubeclf_core.files import check_output
from cubeclf_core.network_configs import BackboneConfig
from cubeclf_core.runs import RunFolder
from cubeclf_core.signals import StopRequest, stop_on_signals
from cubeclf_core.vit_config import Vit3dConfig
from finetune.cluster import open_cluster
from finetune.comparing.cost import Cost, measure_cost
from finetune.comparing.effects import effects
from finetune.comparing.grid import (
    Job,
    Row,
    compute_features,
    jobs_of,
    lacks_features,
    read_cells,
    run_job,
)
from finetune.comparing.page import render
from finetune.comparing.pictures import cost_against_quality, group_bars, learning_curves
from finetune.comparing.plan import Plan, read_plan
from finetune.comparing.pretraining import Pretrained, Pretraining, run_pretraining
from finetune.comparing.processes import Processes
from finetune.comparing.stock import Stock, fill, look
from finetune.comparing.table import to_csv, to_markdown
from finetune.comparing.tasks import check_tasks
from finetune.config import CompareConfig
from finetune.starting import load_start

Item = TypeVar("Item")
Work = Callable[[Callable[[Item], Any], Sequence[Item], Callable[[Any], None]], None]


def compare(config: CompareConfig) -> None:
    """Run a comparison to its end and write its tables, pictures and page.

    Raises
    ------
    InputError
        If the plan, its labels or its backbones cannot be used; nothing has been computed then.
    Stopped
        If a signal asked for it; `--resume` goes on.
    RunFailed
        If a training or a process fails, or the disk is full.
    """
    plan = read_plan(config.plan).only(config.contenders)
    resumed = config.resume and (config.out / "config.yaml").exists()
    inputs = [plan.file, *plan.brains, *plan.cubes]
    check_output(config.out, overwrite=config.overwrite or resumed, inputs=inputs)
    pretrained = Pretrained((config.out / "pretraining").absolute(), plan.pretraining)
    network = _network(plan, pretrained)
    run = RunFolder(config.out, config, resume=resumed)
    try:
        with (
            open_cluster(config.cluster) as cluster,
            Processes(_processes(config)) as here,
            stop_on_signals() as stop,
        ):
            cache = config.out.absolute() / "cache"
            stocked = fill(cache / "labels", plan, network)
            stock = look(stocked)
            check_tasks(plan, stock.labels, stock.reach)
            _introduce(run, plan, stock)
            folders = {
                "pretrained": pretrained,
                "stock": stocked,
                "cells": config.out.absolute() / "cells",
                "features": cache / "features",
            }
            jobs = jobs_of(plan, stock.labels.names, **folders)
            work = (cluster or here).run
            _work_through(plan, jobs, pretrained, stock, work, stop)
        _conclude(run, plan, jobs, stock, pretrained)
    except OSError as error:
        raise RunFailed(f"stopped: {error}; make room and go on with --resume") from error


def _network(plan: Plan, pretrained: Pretrained) -> BackboneConfig:
    """Give what cuboids are read for; all contenders take the same."""
    found: dict[str, BackboneConfig] = {}
    for contender in plan.contenders:
        for name in dict.fromkeys(contender.backbone.values()):
            if name not in plan.pretraining:
                start = load_start(pretrained.find(name, 0), channels=plan.channels, seed=0)
                found[contender.name] = start.backbone.config
    shapes = {name: (c.cuboid_shape, c.voxel_size_um) for name, c in found.items()}
    first = next(iter(shapes), "")
    for name, shape in shapes.items():
        if shape != shapes[first]:
            raise InputError(
                f"contenders {first} and {name} take other cuboids: {shapes[first]} and {shape} "
                "(voxels, µm); compare networks that take the same"
            )
    if not found:
        return Vit3dConfig(channels=plan.channels)
    return dataclasses.replace(found[first], channels=plan.channels)


def _introduce(run: RunFolder, plan: Plan, stock: Stock) -> None:
    labels = stock.labels
    groups = {name: labels.brains.count(name) for name in labels.names}
    told = ", ".join(f"{name} ({n})" for name, n in groups.items())
    run.tell(f"{len(labels)} labels of {told}")
    for remark in stock.remarks:
        run.tell(f"note        {remark}")
    run.tell(f"contenders  {', '.join(contender.name for contender in plan.contenders)}")


def _processes(config: CompareConfig) -> int:
    """How many at a time, if nobody says: one to a core, one alone on a GPU."""
    return config.workers or (1 if torch.cuda.is_available() else os.cpu_count() or 1)


def _work_through(
    plan: Plan,
    jobs: Sequence[Job],
    pretrained: Pretrained,
    stock: Stock,
    work: Work[Any],
    stop: StopRequest,
) -> None:
    """Do all that is missing, a phase after the other."""
    trainings = [t for t in _trainings(plan, jobs, pretrained) if not t.done()]
    _phase("pretraining", work, run_pretraining, trainings, [1] * len(trainings), "runs", stop)
    left = [job.left(stock) for job in jobs]
    asked = [j for j, n in zip(jobs, left, strict=True) if n and lacks_features(j, stock)]
    _phase("embedding", work, compute_features, asked, [1] * len(asked), "groups", stop)
    undone = [job for job, n in zip(jobs, left, strict=True) if n]
    done = sum(len(job.rows) * job.contender.seeds for job in jobs) - sum(left)
    weights = [n for n in left if n]
    _phase("comparing", work, run_job, undone, weights, "cells", stop, done=done)


def _trainings(plan: Plan, jobs: Sequence[Job], pretrained: Pretrained) -> list[Pretraining]:
    wanted: dict[tuple[str, int], None] = {}
    for job in jobs:
        if job.contender.rule is None:
            name = job.contender.backbone_for(job.group)
            for seed in range(job.contender.seeds):
                if name in plan.pretraining:
                    wanted[name, seed] = None
    return [
        Pretraining(name, seed, plan.pretraining[name], pretrained.run(name, seed))
        for name, seed in sorted(wanted, key=lambda pair: pair[1])
    ]


def _phase(
    title: str,
    work: Work[Item],
    function: Callable[[Item], Any],
    items: Sequence[Item],
    weights: Sequence[int],
    unit: str,
    stop: StopRequest,
    *,
    done: int = 0,
) -> None:
    """Have a function do all items, and show how far it is; leave where a signal asks for it."""
    if not items:
        return
    with progress(title, done + sum(weights), unit=unit, done=done) as show:

        def advance(result: Any) -> None:
            if result is not None:
                show(result if isinstance(result, int) and title == "comparing" else 1)
            if stop:
                _leave(stop)

        work(function, items, advance)


def _leave(stop: StopRequest) -> None:
    how = "; the same command with --resume goes on with what is not done yet"
    if stop.signal == "SIGINT":
        say(f"stopped{how}")
        raise KeyboardInterrupt
    raise Stopped(f"stopped by {stop.signal}{how}")


def _conclude(
    run: RunFolder, plan: Plan, jobs: Sequence[Job], stock: Stock, pretrained: Pretrained
) -> None:
    """Write everything that is made of the cells."""
    cells = list(read_cells(jobs, stock))
    rows: list[Row] = [row for row, _, _ in cells]
    found = effects(cells, stock, plan.reference)
    costs = _costs(plan, stock, pretrained)
    run.write_text("results.csv", to_csv(rows))
    run.write_text("differences.csv", to_csv(found))
    run.write_json("costs.json", {name: asdict(cost) for name, cost in costs.items()})
    text = to_markdown(plan, rows, costs)
    run.write_text("table.md", text)
    run.save_figure("figures/learning_curves.png", learning_curves(plan, rows))
    run.save_figure("figures/groups.png", group_bars(plan, rows))
    if costs:
        run.save_figure("figures/cost.png", cost_against_quality(plan, rows, costs))
    run.write_text("comparison.html", render(plan, rows, found, costs, stock.remarks))
    print(text, end="", flush=True)
    run.tell(f"page        {run.path / 'comparison.html'}")
    run.tell(f"all cells   {run.path / 'results.csv'}")


def _costs(plan: Plan, stock: Stock, pretrained: Pretrained) -> dict[str, Cost]:
    group = stock.labels.names[0]
    return {
        contender.name: measure_cost(
            contender.settings(pretrained.find(contender.backbone_for(group), 0), 0)
        )
        for contender in plan.contenders
        if contender.rule is None
    }
