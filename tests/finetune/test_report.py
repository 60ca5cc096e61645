from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from sklearn.neighbors import KNeighborsClassifier

from cubeclf_core.evaluation_plots import learning_curves, prevalence_curve
from cubeclf_core.example_plots import candidate_thumbnails, map_embeddings
from finetune.evaluation import evaluate, evaluate_scores
from finetune.report import ReportContent, Suspect, write_report
from finetune.report_pictures import (
    Predicted,
    evaluation_pictures,
    hardest_mistakes,
    mistake_pictures,
    training_pictures,
)

NASTY = "<script>alert('1')</script> & $\\frac$ 小鼠"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """What a browser would make of a report: its text, tags and what it asks for."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.sources: list[str] = []
        self.words: list[str] = []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def pictures(self) -> list[np.ndarray]:
        start = "data:image/png;base64,"
        assert all(source.startswith(start) for source in self.sources)
        return [
            imread(io.BytesIO(base64.b64decode(source.removeprefix(start))))
            for source in self.sources
        ]


def predicted(n: int = 240, seed: int = 0, good: float = 2.0, **changes: Any) -> Predicted:
    random = np.random.default_rng(seed)
    labels = (random.random(n) < 0.4).astype(np.int64)
    logit = random.normal(size=n) + good * (labels - 0.5)
    cell = 1 / (1 + np.exp(-logit))
    sharp = 1 / (1 + np.exp(-3 * logit))
    places = random.random((n, 3)) * (200, 300, 300)
    given_values = {
        "labels": labels,
        "probabilities": np.stack([1 - cell, cell], axis=1),
        "uncalibrated": np.stack([1 - sharp, sharp], axis=1),
        "positions": places,
        "positions_um": places * (5, 2, 2),
        "brains": [("mouse 1", NASTY)[i % 2] for i in range(n)],
        "scores": {"contrast": labels + random.normal(size=n) * 3},
    }
    return Predicted(**(given_values | changes))


def content(data: Predicted, **changes: Any) -> ReportContent:
    where = data.positions_um, data.brains
    evaluation = evaluate(
        data.labels, data.probabilities, *where, 0.5, uncalibrated=data.uncalibrated, n_resamples=50
    )
    scores = {"classifier": data.probabilities[:, 1], **data.scores}
    beside = evaluate_scores(data.labels, scores, *where, reference="classifier", n_resamples=50)
    told: dict[str, Any] = {
        "title": f"run of {NASTY}",
        "trained": "A linear head was trained on frozen features.",
        "split": "By brain.",
        "labels": [(NASTY, "training", 40, 60), ("mouse 1", "validation", 10, 10)],
        "training_prevalence": 0.4,
        "evaluation": evaluation,
        "scores": beside,
        "temperature": 1.7,
        "settings": f"out: {NASTY}",
        "environment": {"python": "3.11", "packages": {NASTY: "1"}},
    }
    return ReportContent(**(told | changes))


def write(folder: Path, told: ReportContent) -> Page:
    write_report(folder / "report.html", told)
    return Page(folder / "report.html")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, ReportContent]:
    """A report with all that one can have, as large as one gets."""
    random = np.random.default_rng(0)
    data = predicted(embeddings=random.normal(size=(240, 16)))
    told = content(data)
    assert told.evaluation
    pictures = evaluation_pictures(data, told.evaluation)
    cuboids = [
        (index, random.poisson(90, (len(index), 2, 20, 50, 50)))
        for index in hardest_mistakes(data, 0.5)
    ]
    pictures += mistake_pictures(data, *cuboids, (5.0, 1.0, 1.0))
    pictures += training_pictures([{"epoch": e, "train_loss": 1 / (e + 1)} for e in range(5)])
    suspects = [Suspect(NASTY, (1.0, 2.0, float("nan")), "cell", 0.01)] * 12
    told = content(data, pictures=pictures, suspects=suspects, notes=[NASTY])
    return write(tmp_path_factory.mktemp("report"), told), told


def test_a_report_is_one_small_file_that_asks_for_nothing(
    full: tuple[Page, ReportContent],
) -> None:
    page, told = full
    assert len(page.html) < 5e6
    assert len(page.pictures) == len(told.pictures) == 10
    assert all(picture.std() > 0.02 for picture in page.pictures)
    without_pictures = re.sub('base64,[^"]*', "", page.html)
    assert not re.search(r"https?:|//|@import|url\(", without_pictures)
    assert not {"script", "link", "iframe"} & set(page.tags)


def test_what_comes_from_outside_is_text(full: tuple[Page, ReportContent]) -> None:
    page, _ = full
    assert "<script" not in page.html
    assert page.text.count(NASTY) >= 8  # title, labels, tables, suspects, notes, settings, packages
    assert "mouse 1" in page.text


def test_the_summary_says_what_was_measured(full: tuple[Page, ReportContent]) -> None:
    page, told = full
    assert told.evaluation
    pooled = told.evaluation["pooled"]
    low, high = pooled["intervals"]["average_precision"]
    assert f"average precision is {pooled['average_precision']:.3f}" in page.text
    assert f"(95 % interval {low:.3f} to {high:.3f})" in page.text
    assert f"The worst brain is {told.evaluation['worst_brain']}" in page.text
    assert "It is better than the simple rule contrast" in page.text
    assert "Labels for training: 100 (40 cells, 60 others; 1 source)" in page.text
    assert "temperature of 1.7" in page.text
    assert "calibrated for brains where 40 % of the candidates are cells" in page.text
    assert "Where 8 % are, a probability of 0.5 really means 11.5 %" in page.text
    assert "1, 2, ?" in page.text


def test_a_rule_that_is_better_is_said_to_be(tmp_path: Path) -> None:
    perfect = predicted(good=0.5).labels * 5.0
    data = predicted(good=0.5, scores={"contrast": perfect})
    page = write(tmp_path, content(data))
    assert "It is WORSE than the simple rule contrast, with average precision 1.000" in page.text
    even = predicted(good=0.0, seed=3, scores={"density": np.random.default_rng(5).random(240)})
    page = write(tmp_path, content(even))
    assert "It is not shown to be better than the simple rule density" in page.text


def test_without_a_test_brain_the_report_says_that_it_flatters(tmp_path: Path) -> None:
    page = write(tmp_path, content(predicted(), unseen=False))
    assert "There was no test brain" in page.text
    assert "On the validation labels" in page.text
    nothing = content(predicted(), evaluation=None, scores={})
    assert "nothing is known about how good it is" in write(tmp_path, nothing).text


@pytest.mark.parametrize("kind", [0, 1])
def test_labels_of_one_class_still_make_a_report(kind: int, tmp_path: Path) -> None:
    data = predicted(30, labels=np.full(30, kind, np.int64))
    told = content(data)
    assert told.evaluation
    pictures = evaluation_pictures(data, told.evaluation)
    page = write(tmp_path, content(data, pictures=pictures))
    assert "all 30 labels are of one class" in page.text
    assert "nan" not in page.text
    assert len(page.pictures) == 3  # confusion, histogram, calibration


@given(st.integers(0, 99), st.floats(0, 1), st.integers(0, 9))
@settings(max_examples=20)
def test_the_hardest_mistakes_are_the_surest(seed: int, threshold: float, most: int) -> None:
    data = predicted(60, seed=seed, good=0.5)
    cell = data.probabilities[:, 1]
    called = cell >= threshold
    for index, wrong, sureness in zip(
        hardest_mistakes(data, threshold, most),
        (called & (data.labels == 0), ~called & (data.labels == 1)),
        (cell, 1 - cell),
        strict=True,
    ):
        assert len(index) == min(most, wrong.sum())
        assert wrong[index].all()
        expected = np.sort(sureness[wrong])[::-1][: len(index)]
        np.testing.assert_array_equal(sureness[index], expected)


def test_a_thumbnail_shows_the_candidate_in_three_planes() -> None:
    cuboids = np.zeros((2, 2, 20, 50, 50))
    cuboids[0, 0, 10, 5, 25] = 1  # lies in the planes y x and y z, not in x z
    figure = candidate_thumbnails(cuboids, ["p 0.9\n1, 2, 3", NASTY], (5, 1, 1))
    first, second = figure.axes[:2]
    shown = [np.asarray(image.get_array()) for image in first.get_images()]
    assert [plane.shape for plane in shown] == [(50, 50), (50, 20), (50, 20)] * 2
    assert [plane.sum() for plane in shown] == [1, 1, 0, 0, 0, 0]
    assert shown[0][5, 25] == shown[1][5, 10] == 1
    widths = [image.get_extent()[1] - image.get_extent()[0] for image in first.get_images()]
    assert widths[:3] == [50, 100, 100]  # µm
    assert first.get_title("left") == "p 0.9\n1, 2, 3"
    assert "script" in second.get_title("left")


def test_learning_curves_mark_the_best_epoch() -> None:
    average_precision = [0.5, 0.8, float("nan"), 0.7, 0.8]
    lines = [
        {"epoch": e, "train_loss": 1.0 / (e + 1), "validation_average_precision": value}
        for e, value in enumerate(average_precision)
    ]
    loss, precision = learning_curves(lines).axes
    assert "best: epoch 1" in [line.get_label() for line in precision.lines]
    drawn = next(line for line in precision.lines if line.get_label() == "validation")
    np.testing.assert_array_equal(drawn.get_xdata(), [0, 1, 3, 4])
    assert len(next(line for line in loss.lines if line.get_label() == "training").get_xdata()) == 5
    folds = [{**line, "fold": fold} for fold in range(3) for line in lines]
    assert [line.get_label() for line in learning_curves(folds).axes[1].lines].count(
        "best of each fold"
    ) == 1


def test_the_prevalence_curve_goes_through_what_was_measured() -> None:
    (axes,) = prevalence_curve(0.8, 0.1, 0.4, 0.5).axes
    mark = next(line for line in axes.lines if str(line.get_label()).startswith("here"))
    assert mark.get_ydata()[0] == pytest.approx(0.4 * 0.8 / (0.4 * 0.8 + 0.6 * 0.1))


def test_maps_keep_what_is_alike_together() -> None:
    random = np.random.default_rng(0)
    kind = random.integers(0, 3, 150)
    embeddings = random.normal(size=(150, 30)) + 6 * np.eye(3, 30)[kind]
    points, method = map_embeddings(embeddings)
    assert method == "t-SNE"
    np.testing.assert_array_equal(points, map_embeddings(embeddings)[0])
    neighbours = KNeighborsClassifier(3).fit(points[:100], kind[:100])
    assert neighbours.score(points[100:], kind[100:]) > 0.95


@pytest.mark.parametrize("shape", [(1, 5), (2, 5), (3, 1), (9, 4), (5001, 4), (20, 1)])
def test_maps_of_any_number_are_made(shape: tuple[int, int]) -> None:
    embeddings = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for values in (embeddings, np.zeros_like(embeddings)):
        points, method = map_embeddings(values)
        assert points.shape == (shape[0], 2)
        assert np.isfinite(points).all()
        assert method != "t-SNE"
