"""`cubeclf-classify` on a brain of noise: what it writes, for one brain and for a cohort."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml

from cubeclf_core.backbones import build_backbone
from cubeclf_core.brains import VolumeAt
from cubeclf_core.candidates import read_all_candidates
from cubeclf_core.cells import Cells, read_cells, write_cells
from cubeclf_core.checkpoint import FORMAT_VERSION
from cubeclf_core.errors import RunFailed
from cubeclf_core.fast import fastest
from cubeclf_core.pyramid import write_ome_zarr
from cubeclf_core.trained import Classifier, load_trained, save_classifier
from cubeclf_core.vit import Vit3dConfig
from cubeclf_core.volumes import open_volume
from finetune.classifying.parts import Part, load_part
from finetune.classifying.task import Task, run_part

UM = (5.0, 1.0, 1.0)
SHAPE = (40, 512, 512)
N = 60
MANY_PARTS = ("--part", 20)  # four: each half of a side is as thin as a part may be


@dataclass(frozen=True)
class Noise:
    """A brain without anything to find in it, and classifiers that have not learned anything."""

    folder: Path
    volume: Path
    cells: Path
    classifiers: tuple[Path, ...]

    def words(
        self, out: Path, *more: object, classifiers: int = 1, exact: bool = True
    ) -> tuple[object, ...]:
        given = [word for path in self.classifiers[:classifiers] for word in ("--classifier", path)]
        words = ("cubeclf-classify", *given, self.volume, "--cells", self.cells, "--out", out)
        return (*words, *(("--exact",) if exact else ()), *more)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Noise:
    folder = tmp_path_factory.mktemp("noise")
    random = np.random.default_rng(0)
    voxels = random.poisson(60, (2, *SHAPE)).astype(np.uint16)
    voxels[:, :, :, 200:] += 30  # two kinds of tissue, so that scores differ
    write_ome_zarr(folder / "noise.ome.zarr", list(voxels), UM)
    positions = np.floor(random.uniform(0, SHAPE, (N, 3)))
    positions[7] = positions[50]  # one is given twice
    write_cells(folder / "cells.csv", Cells(positions, random.choice([1, 2, -1], N)))
    paths = []
    for seed in range(2):
        network = Vit3dConfig(size="nano", channels=1 + seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            classifier = Classifier(build_backbone(network, seed=seed))
        paths.append(folder / f"classifier{seed}.safetensors")
        save_classifier(paths[-1], classifier, {"threshold": 0.5})
    return Noise(folder, folder / "noise.ome.zarr", folder / "cells.csv", tuple(paths))


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "candidates.csv").open() as file:
        return list(csv.DictReader(file))


def column(out: Path, name: str) -> np.ndarray:
    return np.array([float(row[name] or "nan") for row in rows(out)])


def looked_up(noise: Noise, which: int, flip: tuple[int, ...] = (), n: int = N) -> np.ndarray:
    """Probabilities by the network itself, of cuboids read all at once."""
    network, _ = load_trained(noise.classifiers[which])
    config = network.backbone.config
    cuboids = read_all_candidates(
        open_volume(noise.volume),
        read_cells(noise.cells).positions[:n],
        shape=config.cuboid_shape,
        voxel_size_um=config.voxel_size_um,
        n_channels=config.channels,
    ).cuboids
    with torch.inference_mode():
        return network(cuboids.flip(flip)).double().softmax(1)[:, 1].numpy()


@pytest.fixture(scope="module")
def done(noise: Noise, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The noise, classified by the first network."""
    from finetune.classifying.run import classify
    from finetune.config import ClassifyConfig

    out = tmp_path_factory.mktemp("done") / "out"
    first = (noise.classifiers[0],)
    config = ClassifyConfig(
        str(noise.volume), classifier=first, cells=noise.cells, out=out, exact=True
    )
    classify(config)
    return out


def test_every_candidate_has_its_probability_in_the_order_of_the_input(
    noise: Noise, done: Path
) -> None:
    given = read_cells(noise.cells)
    np.testing.assert_array_equal(
        np.stack([column(done, axis) for axis in "zyx"], 1), given.positions
    )
    np.testing.assert_array_equal(column(done, "type_in"), given.types)
    expected = looked_up(noise, 0)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(column(done, "probability"), expected, atol=2e-6)
    assert (column(done, "unread") == 0).all()
    np.testing.assert_array_equal(column(done, "type"), np.where(expected >= 0.5, 2, 1))
    assert rows(done)[7]["probability"] == rows(done)[50]["probability"]
    summary = json.loads((done / "summary.json").read_text())
    assert (summary["candidates"], summary["unread"]) == (N, 0)
    assert summary["cells"] == (column(done, "type") == 2).sum()
    assert summary["rejection_rate"] == pytest.approx(1 - summary["cells"] / N, abs=1e-6)
    assert summary["mean_probability"] == pytest.approx(expected.mean(), abs=1e-5)
    assert summary["reading_s"] > 0 <= summary["waiting_s"]
    assert summary["drift"] is None  # such a classifier does not tell of its training
    assert not (done / "parts").exists()
    assert (done / "figures" / "classified.png").stat().st_size > 10_000


# brainglobe-utils calls functions of rapidyaml that newer versions of it call deprecated.
@pytest.mark.filterwarnings("ignore:(compute_)?emit_:DeprecationWarning")
def test_brainglobe_reads_points_and_probabilities(noise: Noise, done: Path) -> None:
    io = pytest.importorskip("brainglobe_utils.IO.cells")
    given = read_cells(noise.cells)
    for name in ("cells.xml", "cell_classification.xml", "cell_classification.yml"):
        theirs = io.get_cells(str(done / "points" / name))
        places = sorted((cell.z, cell.y, cell.x) for cell in theirs)
        assert places == sorted(map(tuple, given.positions.tolist()))
        if name != "cells.xml":
            kinds = column(done, "type")
            assert sum(cell.type == 2 for cell in theirs) == (kinds == 2).sum()
    said = [cell.metadata["probability"] for cell in theirs]  # of the YAML, in order
    np.testing.assert_allclose(said, column(done, "probability"), atol=1e-6)


def test_parts_change_nothing(noise: Noise, done: Path, tmp_path: Path, command) -> None:
    out = tmp_path / "out"
    outcome = command(*noise.words(out, *MANY_PARTS))
    assert outcome.code == 0, outcome.err
    assert any("1 candidates are at the place of another" in line for line in outcome.lines)
    np.testing.assert_allclose(column(out, "probability"), column(done, "probability"), atol=2e-6)
    np.testing.assert_array_equal(column(out, "padded"), column(done, "padded"))


def test_the_fastest_way_says_nearly_the_same(
    noise: Noise, done: Path, tmp_path: Path, command
) -> None:
    out = tmp_path / "out"
    outcome = command(*noise.words(out, exact=False))
    assert outcome.code == 0, outcome.err
    found, expected = column(out, "probability"), column(done, "probability")
    np.testing.assert_allclose(found, expected, atol=0.01)
    if fastest()[1] == torch.bfloat16:  # or else both ways may agree in all digits
        assert np.abs(found - expected).max() > 0


def test_several_classifiers_give_average_and_disagreement(
    noise: Noise, tmp_path: Path, command
) -> None:
    """Of which one takes the background too; and what the first sees comes along."""
    out = tmp_path / "out"
    outcome = command(*noise.words(out, "--embeddings", classifiers=2))
    assert outcome.code == 0, outcome.err
    both = np.stack([looked_up(noise, which) for which in range(2)])
    np.testing.assert_allclose(column(out, "probability"), both.mean(0), atol=2e-6)
    np.testing.assert_allclose(column(out, "disagreement"), np.ptp(both, axis=0) / 2, atol=2e-6)
    kept = np.load(out / "embeddings.npy")
    first = load_trained(noise.classifiers[0])[0]
    assert kept.shape == (N, first.backbone.embedding_width)
    with torch.inference_mode():
        again = first.head(torch.from_numpy(kept)).double().softmax(1)[:, 1].numpy()
    np.testing.assert_allclose(again, both[0], atol=2e-6)
    table = np.stack([column(out, f"embedding_{i}") for i in range(3)], 1)
    np.testing.assert_allclose(table, kept[:, :3], rtol=1e-4)
    read = yaml.safe_load((out / "points" / "cell_classification.yml").read_text())
    assert set(read["candidate_cells"][0]["metadata"]) == {
        *("probability", "disagreement", "padded", "unread"),
    }


def test_flips_are_averaged(noise: Noise, tmp_path: Path, command) -> None:
    few = tmp_path / "few.csv"
    write_cells(few, read_cells(noise.cells)[np.arange(10)])
    words = ("cubeclf-classify", noise.volume, "--classifier", noise.classifiers[0])
    assert command(*words, "--cells", few, "--out", tmp_path / "out", "--tta", "--exact").code == 0
    every = [(), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)]
    expected = np.mean([looked_up(noise, 0, flip, 10) for flip in every], axis=0)
    np.testing.assert_allclose(column(tmp_path / "out", "probability"), expected, atol=2e-6)
    assert np.abs(expected - looked_up(noise, 0, (), 10)).max() > 1e-5


def test_a_broken_chunk_costs_its_candidates_and_is_done_again_once_it_is_mended(
    noise: Noise, done: Path, tmp_path: Path, command
) -> None:
    planes = tmp_path / "planes"
    planes.mkdir()
    voxels = open_volume(noise.volume).read((0, 0, 0), SHAPE, 1)[0]
    for z, plane in enumerate(voxels):
        tifffile.imwrite(planes / f"plane{z:03d}.tif", plane, compression="zlib")
    good = (planes / "plane033.tif").read_bytes()
    (planes / "plane033.tif").write_bytes(good[: len(good) // 2])
    out = tmp_path / "out"
    words = ("cubeclf-classify", planes, "--classifier", noise.classifiers[0])
    words = (*words, "--voxel-size-um", *UM, "--cells", noise.cells, "--out", out, "--exact")
    outcome = command(*words)
    assert outcome.code == 1
    z = read_cells(noise.cells).positions[:, 0]
    start = np.trunc(z - 10)
    reached = np.minimum(start + 19, 2 * (SHAPE[0] - 1) - (start + 19))  # reflected at the end
    lost = (start + 19 >= 33) & ((start <= 33) | (reached <= 33))
    unread = column(out, "unread") == 1
    np.testing.assert_array_equal(unread, lost)
    assert f"{lost.sum()} candidates of planes could not be read" in outcome.lines[-1]
    assert "plane033" in outcome.lines[-1]
    np.testing.assert_array_equal(np.isnan(column(out, "probability")), lost)
    assert (column(out, "type")[lost] == 1).all()
    np.testing.assert_allclose(
        column(out, "probability")[~lost], column(done, "probability")[~lost], atol=2e-6
    )
    assert len(read_cells(out / "points" / "cell_classification.xml")) == N
    (planes / "plane033.tif").write_bytes(good)
    assert command(*words, "--resume").code == 0
    np.testing.assert_allclose(column(out, "probability"), column(done, "probability"), atol=2e-6)
    again = command(*words, "--resume")
    assert again.code == 0
    assert "done already" in again.err


def test_a_brain_of_which_nothing_can_be_read_is_told(
    noise: Noise, tmp_path: Path, command
) -> None:
    voxels = np.full((30, 60, 60), np.nan, np.float32)
    tifffile.imwrite(tmp_path / "nan.tif", voxels)
    cells = Cells(np.full((3, 3), 20.0) + np.arange(3)[:, None], np.ones(3, np.int64))
    write_cells(tmp_path / "cells.xml", cells)
    words = ("cubeclf-classify", tmp_path / "nan.tif", "--classifier", noise.classifiers[0])
    words = (*words, "--voxel-size-um", *UM, "--cells", tmp_path / "cells.xml")
    outcome = command(*words, "--out", tmp_path / "out")
    assert outcome.code == 1
    assert "3 candidates of nan could not be read" in outcome.lines[-1]
    assert "not finite" in outcome.lines[-1]
    assert [row["unread"] for row in rows(tmp_path / "out")] == ["1"] * 3
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["cells"], summary["rejection_rate"]) == (0, None)


def test_a_cohort_has_a_table_and_a_folder_for_each(
    noise: Noise, done: Path, tmp_path: Path, command
) -> None:
    brains = [
        {"name": name, "signal": str(noise.volume), "cells": str(noise.cells)} for name in "ab"
    ]
    file = tmp_path / "brains.yaml"
    file.write_text(yaml.safe_dump(brains))
    out = tmp_path / "out"
    words = ("cubeclf-classify", file, "--classifier", noise.classifiers[1], "--out", out)
    outcome = command(*words)
    assert outcome.code == 0, outcome.err
    assert rows(out / "a") == rows(out / "b")
    with (out / "brains.csv").open() as table:
        a, b = csv.DictReader(table)
    assert (a["brain"], b["brain"]) == ("a", "b")
    kinds = column(out / "a", "type")
    assert int(a["candidates"]) == N
    assert int(a["cells"]) == (kinds == 2).sum()
    assert float(a["rejection_rate"]) == pytest.approx((kinds == 1).mean(), abs=1e-6)
    assert float(a["mean_probability"]) == pytest.approx(
        column(out / "a", "probability").mean(), abs=1e-5
    )
    assert float(a["reading_s"]) > 0 <= float(a["waiting_s"])
    refused = command(*words[:-1], tmp_path / "other", "--cells", noise.cells)
    assert refused.code == 2
    assert "name the candidates of each in the brains file" in refused.lines[-1]
    shutil.rmtree(out / "b")
    again = command(*words, "--resume")  # b alone is done again
    assert again.code == 0
    assert "a is done already" in again.err
    assert rows(out / "a") == rows(out / "b")


def test_names_that_differ_in_capitals_alone_are_refused(
    noise: Noise, tmp_path: Path, command
) -> None:
    names = ("Mouse", "mouse")
    brains = [{"name": n, "signal": str(noise.volume), "cells": str(noise.cells)} for n in names]
    (tmp_path / "brains.yaml").write_text(yaml.safe_dump(brains))
    words = ("cubeclf-classify", tmp_path / "brains.yaml", "--classifier", noise.classifiers[0])
    outcome = command(*words, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "'Mouse' and 'mouse' would share a folder" in outcome.lines[-1]
    assert not (tmp_path / "out").exists()


def test_what_a_run_depends_on_may_not_change_before_it_goes_on(
    noise: Noise, tmp_path: Path, command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the brains file, nor what lies where it points to, nor the way of computing."""
    file, out = tmp_path / "brains.yaml", tmp_path / "out"
    copy = tmp_path / "copy.ome.zarr"
    shutil.copytree(noise.volume, copy)
    brain = {"name": "noise", "signal": str(copy), "cells": str(noise.cells)}
    file.write_text(yaml.safe_dump([brain]))
    words = ("cubeclf-classify", file, "--classifier", noise.classifiers[0], "--out", out)
    assert command(*words).code == 0

    def refused(says: str) -> None:
        outcome = command(*words, "--resume")
        assert outcome.code == 2, outcome.err
        assert says in outcome.lines[-1]

    for edit in ({"signal": str(noise.volume)}, {"channels": [1, 0]}, {"name": "other"}):
        file.write_text(yaml.safe_dump([brain | edit]))
        refused("the place of the volume, its channels or voxel size of")
    file.write_text(yaml.safe_dump([brain]))
    voxels = open_volume(noise.volume).read((0, 0, 0), SHAPE)
    shutil.rmtree(copy)
    write_ome_zarr(copy, list(voxels), UM, chunks=(20, 64, 64))
    refused("the chunk shape of noise is not what the run")
    shutil.rmtree(copy)
    shutil.copytree(noise.volume, copy)
    with monkeypatch.context() as elsewhere:
        other = torch.device("cuda"), torch.bfloat16
        elsewhere.setattr("finetune.classifying.job.fastest", lambda: other)
        refused("the way of computing (precision and kind of device) of noise")
    (out / "parts").mkdir()  # as a kill leaves it, once all else is done
    again = command(*words, "--resume")
    assert again.code == 0
    assert "noise is done already" in again.err
    assert not (out / "parts").exists()
    (out / "job.json").write_text("{")
    refused("job.json, which says what the results in")


def test_a_kill_before_the_settings_are_written_leaves_nothing_in_the_way(
    noise: Noise, done: Path, tmp_path: Path, command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path) -> None:
        raise SystemExit(9)

    out = tmp_path / "out"
    with monkeypatch.context() as now:
        now.setattr("cubeclf_core.runs.mark", killed)
        assert command(*noise.words(out)).code == 9
    assert not out.exists()
    assert command(*noise.words(out, "--resume")).code == 0
    assert rows(out) == rows(done)


def test_a_worker_serves_one_job_after_another_and_none_that_it_would_compute_otherwise(
    noise: Noise, done: Path, tmp_path: Path
) -> None:
    """What it has loaded for a job is not used for the next, though paths are the same."""
    classifier = tmp_path / "c.safetensors"
    where = read_cells(noise.cells).positions[:9]
    part = Part(0, np.arange(9), where, np.zeros(9, bool))
    at = VolumeAt(noise.volume)
    for number, file in enumerate(noise.classifiers):
        shutil.copyfile(file, classifier)
        folder = tmp_path / str(number)
        task = Task(f"job {number}", at, (classifier,), True, False, "float32 on cpu", folder)
        assert run_part(task, part) == 9
        scores = load_part(folder, part, task.job)
        expected = looked_up(noise, number, n=9)
        np.testing.assert_allclose(scores.probability[:, 0], expected, atol=2e-6)
        assert load_part(folder, part, "another job") is None
    with pytest.raises(RunFailed, match="a worker computes in float32 on cpu, the run in bfloat16"):
        run_part(replace(task, computing="bfloat16 on cuda"), part)


@pytest.mark.slow
def test_a_brain_unlike_the_training_is_warned_of(simulated, tmp_path: Path, command) -> None:
    """The same brain twice, once as by a camera with a far higher offset."""
    run, like = tmp_path / "run", simulated(1)
    words = ("--backbone", "scratch:vit-nano", "--brains", simulated(0).brains_file)
    few = ("--labels", 100, "--folds", 2)
    assert command("cubeclf-finetune", *words, *few, "--out", run).code == 0
    volume = open_volume(like.volume)
    offset = volume.read((0, 0, 0), volume.shape) + np.uint16(2000)
    write_ome_zarr(tmp_path / "offset.ome.zarr", list(offset), volume.voxel_size_um)
    file = tmp_path / "brains.yaml"
    signals = {"like": like.volume, "unlike": tmp_path / "offset.ome.zarr"}
    brains = [
        {"name": name, "signal": str(signal), "cells": str(like.cells)}
        for name, signal in signals.items()
    ]
    file.write_text(yaml.safe_dump(brains))
    out = tmp_path / "out"
    outcome = command("cubeclf-classify", file, "--classifier", run, "--out", out)
    assert outcome.code == 0, outcome.err
    warned = [line for line in outcome.lines if line.startswith("warning")]
    assert warned
    assert all(line.startswith("warning     unlike: ") for line in warned)
    with (out / "brains.csv").open() as table:
        assert [row["drift"] for row in csv.DictReader(table)] == ["", "drift"]


def bad(noise: Noise, folder: Path):
    """Commands that cannot be, each with what is said of it."""
    newer = folder / "newer.safetensors"
    weights, header = noise.classifiers[0].read_bytes(), '\\"format_version\\": '
    now, later = (f"{header}{FORMAT_VERSION + n}".encode() for n in (0, 8))
    assert weights.count(now) == 1
    newer.write_bytes(weights.replace(now, later))
    yield ("--classifier", newer), "update cubeclf"
    wide = Vit3dConfig(size="nano", cuboid_shape=(20, 60, 60), channels=1)
    save_classifier(folder / "wide.safetensors", Classifier(build_backbone(wide, seed=0)), {})
    yield ("--classifier", folder / "wide.safetensors"), "have to take the same"
    positions = read_cells(noise.cells).positions * (1, 2, 2)
    write_cells(folder / "finer.csv", Cells(positions, np.ones(N, np.int64)))
    yield ("--cells", folder / "finer.csv"), "divided by 2 along y x"
    yield ("--cluster", "nonsense"), "expected local:4, tcp://HOST:PORT"
    gone = folder / "local_scheduler.json"
    yield ("--cluster", gone), f"start a scheduler with --scheduler-file {gone}"
    yield ("--resume", "--overwrite"), "one of the two"


def test_what_cannot_be_is_told_in_a_line_before_anything_is_written(
    noise: Noise, tmp_path: Path, command
) -> None:
    out = tmp_path / "out"
    for more, says in bad(noise, tmp_path):
        words = noise.words(out)
        if more[0] == "--cells":
            words = tuple(w for w in words if w not in ("--cells", noise.cells))
        outcome = command(*words, *more)
        assert outcome.code == 2, (more, outcome.err)
        assert says in outcome.lines[-1], (more, outcome.err)
        assert len(outcome.lines) == 1
        assert not out.exists()


@pytest.mark.slow
def test_a_program_has_no_embeddings_to_give(noise: Noise, tmp_path: Path, command) -> None:
    program = tmp_path / "c.pt2"
    assert command("cubeclf-export", noise.classifiers[0], "--out", program).code == 0
    words = ("cubeclf-classify", noise.volume, "--classifier", program, "--cells", noise.cells)
    outcome = command(*words, "--out", tmp_path / "out", "--embeddings")
    assert outcome.code == 2
    assert "a program that gives probabilities alone" in outcome.lines[-1]
