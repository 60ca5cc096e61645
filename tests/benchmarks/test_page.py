from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import finetuning, gpu, scaling
from benchmarks import page as page_module
from benchmarks.apart import apart
from benchmarks.glance import gather, picture, tables
from benchmarks.page import DOCS, PAGE, RESULTS, finetuning_part, pages, scaling_part
from finetune.comparing.results import Row

ROOT = Path(__file__).parents[2]


def test_pages_are_what_the_results_make_of_them() -> None:
    made = pages(RESULTS)
    assert set(made) == {PAGE, *(f"comparisons/{f.name}" for f in (DOCS / "comparisons").iterdir())}
    for name, text in made.items():
        assert (DOCS / name).read_text(encoding="utf-8") == text


def test_links_of_pages_lead_somewhere() -> None:
    for name, text in pages(RESULTS).items():
        links = re.findall(r"\]\(([^)#]*)(?:#([^)]+))?\)", text)
        assert links, name
        for link, part in links:
            file = (DOCS / name).parent / link if link else DOCS / name
            assert file.exists(), (name, link)
            titles = re.findall("^#+ (.*)", file.read_text("utf-8"), re.MULTILINE) if part else []
            anchors = [re.sub("[^a-z -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert not part or part in anchors, (name, link, part)


def test_a_comparison_that_is_not_whole_is_one_line(tmp_path: Path, monkeypatch, capfd) -> None:
    results, docs = tmp_path / "results", tmp_path / "docs"
    shutil.copytree(RESULTS, results)
    monkeypatch.setattr(page_module, "RESULTS", results)
    monkeypatch.setattr(page_module, "DOCS", docs)
    about = results / "comparison_cfos" / "about.md"
    about.write_text("No title")
    assert page_module.main([]) == 2
    assert "begins with 'No title', expected a title" in capfd.readouterr().err
    about.unlink()
    assert page_module.main([]) == 2
    assert "about.md" in capfd.readouterr().err
    assert not docs.exists()


def test_a_part_without_a_result_says_so(tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(RESULTS, results)
    (results / "gpu.json").unlink(missing_ok=True)
    for folder in results.glob("comparison_cfos*"):
        shutil.rmtree(folder)
    before, after = pages(RESULTS)[PAGE], pages(results)[PAGE]
    assert "glance" in before
    assert "glance" not in after
    assert after.count("Not measured yet.") == before.count("Not measured yet.") + 1
    assert "| simclr tiny, eager |" in before
    assert "| simclr tiny, eager |" not in after


def test_tables_are_brought_together(tmp_path: Path) -> None:
    """By the first that has it; the mean of blocks of what is of one draw is marked."""

    def write(name: str, *lines: tuple[str, str, int, int, float]) -> None:
        fields = dict.fromkeys(Row.__dataclass_fields__, "0")
        (tmp_path / f"comparison_{name}").mkdir()
        with (tmp_path / f"comparison_{name}" / "results.csv").open("w", newline="") as opened:
            writer = csv.DictWriter(opened, list(fields))
            writer.writeheader()
            for contender, group, budget, seed, auc in lines:
                told = {"contender": contender, "group": group, "budget": budget, "seed": seed}
                writer.writerow(fields | told | {"auc": auc, "protocol": "own"})

    assert gather(tmp_path) == []
    half = ("forest", "a", 20, 2, 0.9)  # not tried on b
    write("cfos", *(("forest", group, 20, seed, 0.5) for group in "ab" for seed in (0, 1)), half)
    own = [("ResNet-18", "a", 20, seed, 0.7 + 0.1 * seed) for seed in (0, 1)]
    own += [("ResNet-18", "b", 20, seed, 0.3 + 0.1 * seed) for seed in (0, 1)]
    one = [("ResNet-18, one seed", g, n, 0, 0.25) for g in "ab" for n in (20, 0)]
    write("cfos_own", *own, *one, ("left out", "a", 20, 0, 0.9))
    rows = gather(tmp_path)
    words, auc, _ = tables(rows)
    assert "the mean of blocks, then a, b." in words
    assert "| forest | **.500** .500 .500 |" in auc
    assert "| ResNet-18 from scratch | **.550** .750 .350 |  |  | **.250**† .250 .250 |" in auc
    assert "left out" not in auc
    assert "contrast" not in auc
    # Of each group by own labels, and by those of others.
    assert len(picture(rows).axes) == 4


def test_a_hundred_brains_are_worked_out_from_the_network_and_from_reading(tmp_path: Path) -> None:
    """A core that classifies a hundred a second, and reads as many, does fifty."""
    results = tmp_path / "results"
    shutil.copytree(RESULTS, results)
    told = {
        "classification": {"tissue 200000.cubeclf.nano.fast.per_second": 400, "cpus": 4},
        # Of the density of the measurement, and of such a brain.
        "streaming": {"candidates_sparse_per_wall_second": 200 * 2e5 / 1.3e5, "cpus": 2},
    }
    for name, figures in told.items():
        file = results / f"{name}.json"
        known = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(known | figures), encoding="utf-8")
    part = pages(results)[PAGE].split("## A hundred brains")[1]
    assert "**1.7 hours**" in part  # 5e7 candidates by 160 cores
    assert "- A core does 50 candidates a second: 100 where" in part
    assert "are 6 GB/s over all nodes" in part  # 100 brains, 1e11 voxels, 4 bytes, 6250 s
    (results / "streaming.json").unlink()
    assert pages(results)[PAGE].split("## A hundred brains")[1].strip() == "Not measured yet."


def test_no_result_names_a_path() -> None:
    for file in RESULTS.rglob("*"):
        if file.suffix in (".json", ".md", ".csv"):
            text = file.read_text(encoding="utf-8")
            assert "/tmp/" not in text, file
            assert str(Path.home()) + "/" not in text, file


def test_who_is_ahead_is_told_of_each_group(tmp_path: Path) -> None:
    ends = {"a": (0.1, 0.3), "b": (-0.3, -0.1), "c": (-0.1, 0.1), "d": (float("nan"),) * 2}
    lines = ["protocol,budget,group,contender,contender_budget,measure,difference,low,high,seeds"]
    for measure, turned in (("auc", 1), ("average_precision_less_prevalence", -1)):
        for group, (low, high) in ends.items():
            low, high = sorted((turned * low, turned * high))
            lines.append(f"own,0,{group},forest,0,{measure},0,{low},{high},1")
    lines.append("transfer,30,c,gone from the plan,30,auc,0,-1,1,1")
    lines.append("transfer,30,a,forest,0,auc,0,1,2,1")
    (tmp_path / "differences.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    said, auc, precision = apart(tmp_path / "differences.csv", "small")
    assert "**pretrained, frozen**" in said
    assert "in a, b, c, d" in said
    assert "| AUC | own all | transfer 30 |" in auc
    assert "| forest | + − · ? |  |" in auc
    assert "| gone from the plan |  | ? ? · ? |" in auc
    assert "| forest, all labels |  | + ? ? ? |" in auc
    assert "| forest | − + · ? |  |" in precision
    (tmp_path / "differences.csv").write_text("")
    assert apart(tmp_path / "differences.csv", "small") == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_without_a_gpu_it_says_what_measures_here(capfd) -> None:
    assert gpu.main([]) == 2
    assert "no GPU here" in capfd.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_measured(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(gpu, "BATCHES", {"nano": 16})
    assert (
        gpu.main(["--sizes", "nano", "--methods", "mae", "--json", str(tmp_path / "gpu.json")]) == 0
    )
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["train.mae.nano.eager.cuboids_per_s"] > 0
    assert found["train.mae.nano.compiled.cuboids_per_s"] > 0
    assert "mae nano, compiled" in capfd.readouterr().out


@pytest.mark.slow
def test_growth_is_measured_in_processes_of_their_own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(scaling, "BRAINS", (1, 2))
    monkeypatch.setattr(scaling, "BATCHES", (8,))
    monkeypatch.setattr(scaling, "PROCESSES", (2,))
    found = scaling.measure(tmp_path, (64, 128, 128), 5)
    for name in ("brains.1", "brains.2", "batch.8", "processes.2"):
        assert float(found[f"{name}.cuboids_per_s"]) > 0
        assert 0.2 < float(found[f"{name}.memory_gb"]) < 8
    assert "| processes 2 |" in "".join(scaling_part(found))


@pytest.mark.slow
def test_whole_trainings_are_measured(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(finetuning, "LABELS", 12)
    found = finetuning.measure(tmp_path, ["nano, frozen", "nano, trained"])
    frozen, trained = (float(found[f"nano, {way}.seconds"]) for way in ("frozen", "trained"))
    assert 1 < frozen < trained  # which takes 200 steps more
    assert float(found["nano, trained.peak_gb"]) > 0.2
    assert "| nano, frozen | 1.0 |" in "".join(finetuning_part(found))


LATE = pytest.param("gpu", marks=pytest.mark.slow)  # imports torch before it answers


@pytest.mark.parametrize("name", [LATE, "finetuning", "scaling", "serial2p", "zoo"])
def test_help_says_what_it_is(name: str) -> None:
    words = [sys.executable, "-W", "error", "-m", f"benchmarks.{name}", "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"python -m benchmarks.{name}" in done.stdout
