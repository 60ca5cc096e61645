"""The run of `cubeclf-compare`: contenders, labels and seeds in; tables, pictures and a page out.

First missing backbones are pretrained, then what frozen ones say of all labels is computed and
learning rates are chosen, then come the cells of the grid. All of it is kept in files that are
named by what they depend on, so a run that was killed goes on, and a plan with another contender or
budget takes up what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cubeclf_core.classifier import load_classifier
from cubeclf_core.console import progress, say
from cubeclf_core.engine import device_kind
from cubeclf_core.errors import InputError, OutputExists, RunFailed, Stopped
from cubeclf_core.files import check_output
from cubeclf_core.network_configs import BackboneConfig
from cubeclf_core.runs import RunFolder
from cubeclf_core.signals import StopRequest, stop_on_signals
from cubeclf_core.vit_config import Vit3dConfig
from finetune.cluster import open_cluster
from finetune.comparing.cost import measure_cost
from finetune.comparing.effects import effects
from finetune.comparing.grid import (
    Job,
    embed,
    embeddings,
    jobs_of,
    read_cells,
    read_divergences,
    run_job,
    search,
    searches,
)
from finetune.comparing.page import draw, render
from finetune.comparing.plan import AS_IT_IS, Plan, read_plan
from finetune.comparing.pretraining import Pretrained, Pretraining, run_pretraining
from finetune.comparing.processes import Processes, alone, usable_cores
from finetune.comparing.results import Cost, Row
from finetune.comparing.stock import Stock, fill, look, places
from finetune.comparing.table import to_csv, to_markdown
from finetune.comparing.tasks import check_tasks
from finetune.config import CompareConfig
from finetune.sources import find_labels, reach_um
from finetune.starting import load_start, untrained_classifier

Item = TypeVar("Item")
Work = Callable[[Callable[[Item], int], Sequence[Item], Callable[[int | None], None]], None]


def compare(config: CompareConfig) -> None:
    """Run a comparison to its end and write its tables, pictures and page.

    Raises
    ------
    InputError
        If the plan, its labels or its backbones cannot be used; nothing has been computed then.
    Stopped
        If a signal asked for it; `--resume` goes on.
    RunFailed
        If a pretraining or a process fails, or the disk is full; if a training diverges, when
        everything else is done and written.
    """
    whole = read_plan(config.plan)
    plan = whole.only(config.contenders)
    sources = find_labels(plan.brains, plan.cubes, voxel_size_um=plan.voxel_size_um)
    pretrained = Pretrained.plan((config.out / "pretraining").absolute(), plan.pretraining)
    network = _network(plan, pretrained)
    reach = reach_um(sources, network)
    check_tasks(plan, places(sources), reach)
    there = _is_comparison(config.out)
    resumed = config.resume and there
    inputs = [plan.file, *sources.paths, *_backbones(plan, pretrained)]
    if there and not (resumed or config.overwrite):
        raise OutputExists(
            f"{config.out} is a comparison already; go on with it by --resume, which keeps what is "
            "done, or begin anew by --overwrite, which deletes that"
        )
    if not resumed:
        check_output(config.out, overwrite=config.overwrite, inputs=inputs)
    with (
        open_cluster(config.cluster) as cluster,
        Processes(config.workers or (usable_cores() if device_kind() == "cpu" else 1)) as here,
        stop_on_signals() as stop,
    ):
        run = RunFolder(config.out, config, resume=resumed)
        try:
            cache = config.out.absolute() / "cache"
            stocked = fill(cache / "labels", sources, plan.channels, network)
            stock = look(stocked)
            # What was given twice is gone, so that a budget may not be reached any more.
            remarks = [*check_tasks(plan, stock.labels, stock.reach), *stock.remarks]
            remarks += _another_reference(plan, whole)
            _introduce(run, plan, stock, remarks)
            jobs = jobs_of(
                plan,
                stock.labels.names,
                pretrained=pretrained,
                stock=stocked,
                cells=config.out.absolute() / "cells",
                features=cache / "features",
                device=device_kind(),
            )
            _work_through(plan, jobs, pretrained, stock, (cluster or here).run, stop)
            _conclude(run, plan, jobs, stock, pretrained, remarks)
        except OSError as error:
            raise RunFailed(f"stopped: {error}; make room and go on with --resume") from error


def _another_reference(plan: Plan, whole: Plan) -> list[str]:
    """Say so where the contender that differences are taken to is left out."""
    if plan.reference == whole.reference:
        return []
    return [f"differences are taken to {plan.reference}, as {whole.reference} takes no part"]


def _is_comparison(folder: Path) -> bool:
    """Whether a folder is of a comparison, and not of another command's run."""
    file = folder / "config.yaml"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    return any(line.startswith("plan:") for line in lines)


def _backbones(plan: Plan, pretrained: Pretrained) -> list[Path]:
    """Files and folders of backbones that are there already."""
    uses = {
        (name, seed)
        for contender in plan.contenders
        for name in contender.backbone.values()
        for seed in range(contender.seeds)
        if name not in plan.pretraining
    }
    return [path for use in sorted(uses) if (path := Path(pretrained.find(*use))).exists()]


def _network(plan: Plan, pretrained: Pretrained) -> BackboneConfig:
    """Give what cuboids are read for, the same for all; try out that each can be trained.

    Raises
    ------
    InputError
        If a backbone is not there, cannot be trained as asked, or takes other cuboids than others.
    """
    found: dict[str, BackboneConfig] = {}
    for contender in plan.contenders:
        for name in dict.fromkeys(contender.backbone.values()):
            told = f"{contender.name} ({name})"
            if name in plan.pretraining:
                found[told] = _to_be_pretrained(plan, name)
                continue
            if contender.rule == AS_IT_IS:
                found[told] = load_classifier(pretrained.find(name, 0), exact=True).config
                continue
            for weights in dict.fromkeys(pretrained.find(name, s) for s in range(contender.seeds)):
                start = load_start(weights, channels=plan.channels, seed=0)
                untrained_classifier(start, contender.settings(weights, 0))
                found[told] = start.backbone.config
    shapes = {name: (c.cuboid_shape, c.voxel_size_um) for name, c in found.items()}
    first = next(iter(shapes), "")
    for name, shape in shapes.items():
        if shape != shapes[first]:
            raise InputError(
                f"contenders {first} and {name} take other cuboids: {shapes[first]} and {shape} "
                "(voxels, µm); compare networks that take the same"
            )
    return found.get(first, Vit3dConfig(channels=plan.channels))


def _to_be_pretrained(plan: Plan, name: str) -> Vit3dConfig:
    """What a pretraining's network takes, as its settings say."""
    network = plan.pretraining[name].get("network", {})
    given = {key: network[key] for key in ("voxel_size_um", "patch_um") if key in network}
    return Vit3dConfig.from_dict({"channels": plan.channels, **given})


def _introduce(run: RunFolder, plan: Plan, stock: Stock, remarks: Sequence[str]) -> None:
    labels = stock.labels
    groups = {name: labels.brains.count(name) for name in labels.names}
    told = ", ".join(f"{name} ({n})" for name, n in groups.items())
    run.tell(f"{len(labels)} labels of {told}")
    for remark in remarks:
        run.tell(f"note        {remark}")
    run.tell(f"contenders  {', '.join(contender.name for contender in plan.contenders)}")


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
    _phase("pretraining", work, run_pretraining, trainings, len(trainings), "runs", stop)
    left = [len(job.left(stock)) for job in jobs]
    undone = [job for job, n in zip(jobs, left, strict=True) if n]
    asked = embeddings(undone, stock)
    _phase("embedding", work, embed, asked, len(asked), "groups", stop)
    rates = searches(undone, stock)
    _phase("choosing learning rates", work, search, rates, len(rates), "searches", stop)
    total = sum(len(job.rows) * job.contender.seeds for job in jobs)
    _phase("comparing", work, run_job, undone, total, "cells", stop, done=total - sum(left))


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
    function: Callable[[Item], int],
    items: Sequence[Item],
    total: int,
    unit: str,
    stop: StopRequest,
    *,
    done: int = 0,
) -> None:
    """Have a function do all items, and show how far it is; leave where a signal asks for it."""
    if not items:
        return
    with progress(title, total, unit=unit, done=done) as show:

        def advance(n: int | None) -> None:
            if n is not None:
                show(n)
            if stop:
                _leave(stop)

        work(partial(alone, function), items, advance)


def _leave(stop: StopRequest) -> None:
    how = "; the same command with --resume goes on with what is not done yet"
    if stop.signal == "SIGINT":
        say(f"stopped{how}")
        raise KeyboardInterrupt
    raise Stopped(f"stopped by {stop.signal}{how}")


def _conclude(
    run: RunFolder,
    plan: Plan,
    jobs: Sequence[Job],
    stock: Stock,
    pretrained: Pretrained,
    remarks: Sequence[str],
) -> None:
    """Write everything that is made of the cells; say so where there are not all."""
    cells = list(read_cells(jobs, stock))
    diverged = read_divergences(jobs, stock)
    left_out = [f"Left out: {told}" for told in diverged]
    for told in left_out:
        run.tell(f"note        {told}")
    tested = {row.group for row, _, _ in cells}
    if empty := [name for name in stock.labels.names if name not in tested]:
        raise RunFailed(f"nothing can be compared on {', '.join(empty)}: every training diverges")
    rows: list[Row] = [row for row, _, _ in cells]
    found = effects(cells, stock, plan)
    costs = _costs(plan, stock, pretrained)
    run.write_text("results.csv", to_csv(rows))
    run.write_text("differences.csv", to_csv(found))
    run.write_json("costs.json", {name: asdict(cost) for name, cost in costs.items()})
    text = to_markdown(plan, rows, costs, left_out)
    run.write_text("table.md", text)
    run.write_text("plan.yaml", plan.text)  # the one that was given may be changed
    pictures = draw(plan, rows, costs)
    if not costs:  # another run here may have drawn them
        (run.path / "figures" / "cost.png").unlink(missing_ok=True)
    for name, picture in pictures.items():
        run.save_figure(f"figures/{name}.png", picture.figure)
    run.write_text(
        "comparison.html", render(plan, rows, found, pictures.values(), [*remarks, *left_out])
    )
    print(text, end="", flush=True)
    run.tell(f"page        {run.path / 'comparison.html'}")
    run.tell(f"all cells   {run.path / 'results.csv'}")
    if diverged:
        raise RunFailed(
            f"{len(diverged)} of {len(diverged) + len(cells)} cells are left out of the tables: "
            "their training diverges, as notes above and on the page tell; give lower rates"
        )


def _costs(plan: Plan, stock: Stock, pretrained: Pretrained) -> dict[str, Cost]:
    group = stock.labels.names[0]
    return {
        contender.name: measure_cost(
            contender.settings(pretrained.find(contender.backbone_for(group), 0), 0)
        )
        for contender in plan.contenders
        if contender.rule is None
    }
