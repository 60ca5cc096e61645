from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from cubeclf_core.pretraining_plots import reconstruction_mosaic, token_map, training_curves

Lines = list[dict[str, Any]]
NAMES = re.findall(
    r"\w+",
    "loss neighbour_mean chance found cross_entropy koleo ibot uniform teacher_entropy kl "
    "marginal_entropy "
    "learning_rate weight_decay momentum teacher_temperature gradient_norm cuboids_per_s "
    "wait_share faults rank_me rank_me_class feature_deviation mean_cosine probe_knn_auc "
    "probe_linear_auc shortcut_brain shortcut_brain_chance shortcut_intensity shortcut_depth",
)
NUMBER = st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf]) | st.integers(0, 9)


def curves(folder: Path, lines: Lines, tail: str = "") -> Figure:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail, encoding="utf-8")
    return training_curves(path)


def panels(figure: Figure) -> dict[str, Axes]:
    found = {}
    for axes in figure.axes:
        legend = axes.get_legend()
        if legend:
            found[legend.get_title().get_text()] = axes
    return found


def drawn(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {
        str(line.get_label()): (
            np.asarray(line.get_xdata()).tolist(),
            np.asarray(line.get_ydata()).tolist(),
        )
        for line in axes.lines
    }


def save(figure: Figure, path: Path) -> npt.NDArray[np.float32]:
    figure.savefig(path, dpi=50)
    pixels: npt.NDArray[np.float32] = imread(path)[..., :3]
    return pixels


def test_a_panel_for_each_question_that_has_data(tmp_path: Path) -> None:
    mae = [{"step": s, "loss": 1 / (s + 1), "neighbour_mean": 0.8} for s in range(5)]
    assert set(panels(curves(tmp_path, mae))) == {"loss"}
    probed = [*mae, {"step": 5, "probe_knn_auc": 0.7, "rank_me": 3.0, "uniform": 7.0}]
    assert set(panels(curves(tmp_path, probed))) == {
        "loss",
        "probe, AUC",
        "effective rank (RankMe)",
    }
    everything = [{"step": s} | dict.fromkeys(NAMES, 0.5) for s in range(3)]
    full = panels(curves(tmp_path, everything))
    assert len(full) == 10
    labels = {label for axes in full.values() for label in drawn(axes)}
    assert {"loss", "mean of neighbours", "cross-entropy", "chance", "depth, R²"} <= labels


def test_a_metric_is_drawn_where_it_was_logged(tmp_path: Path) -> None:
    lines: Lines = [{"step": s, "loss": 9.0 - s} for s in range(6)]
    lines += [{"step": 4, "loss": 1.5}]  # taken again after a resume
    lines += [{"step": s, "rank_me": 10.0 + s} for s in (0, 5)]
    found = panels(curves(tmp_path, lines, tail='{"step": 6, "lo'))
    assert drawn(found["loss"])["loss"] == ([0, 1, 2, 3, 4, 5], [9, 8, 7, 6, 1.5, 4])
    assert drawn(found["effective rank (RankMe)"])["pooled"] == ([0, 5], [10, 15])


def test_a_long_curve_is_smoothed_but_keeps_its_course(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 1000)
    lines = [{"step": s, "loss": 1 - s / 1000 + float(noise[s])} for s in range(1000)]
    lines[500]["loss"] = math.nan
    steps, smooth = drawn(panels(curves(tmp_path, lines))["loss"])["loss"]
    assert steps == [s for s in range(1000) if s != 500]
    error = np.array(smooth) - (1 - np.array(steps) / 1000)
    assert np.abs(error[10:-10]).max() < 0.1
    assert error[10:-10].std() < 0.03


@settings(max_examples=4, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # slow to draw
@example(lines=[{"gradient_norm": 0.0, "learning_rate": 0.0, "wait_share": 0, "cuboids_per_s": 0}])
@example(lines=[{"gradient_norm": math.nan, "learning_rate": math.inf, "wait_share": math.nan}])
@given(lines=st.lists(st.dictionaries(st.sampled_from(NAMES), NUMBER, max_size=6), max_size=4))
def test_anything_that_a_run_logs_can_be_drawn(
    tmp_path_factory: pytest.TempPathFactory, lines: Lines
) -> None:
    folder = tmp_path_factory.mktemp("run")
    figure = curves(folder, [{"step": s, **values} for s, values in enumerate(lines)])
    assert save(figure, folder / "progress.png").size


def sample_cuboids(channels: int) -> tuple[npt.NDArray[Any], ...]:
    inputs = np.random.default_rng(0).normal(size=(2, channels, 4, 8, 8)).astype(np.float32)
    inputs[:, -1:] *= channels == 1  # a blank background
    seen = inputs.copy()
    seen[..., :4] = np.nan
    return inputs, seen, np.nan_to_num(seen)


@pytest.mark.parametrize("channels", [1, 2])
def test_the_mosaic_shows_three_planes_to_scale(channels: int, tmp_path: Path) -> None:
    arrays = sample_cuboids(channels)
    figure = reconstruction_mosaic(*arrays, (5.0, 1.0, 1.0))
    assert len(figure.axes) == 3
    for axes, cuboids in zip(figure.axes, arrays, strict=True):
        assert axes.get_aspect() == 1.0
        images = axes.get_images()
        assert len(images) == 2 * channels * 3
        for row in range(2 * channels):
            item, channel = divmod(row, channels)
            cuboid = cuboids[item, channel]
            planes = (cuboid[2], cuboid[:, :, 4].T, cuboid[:, 4].T)
            sizes = ((8, 8), (8, 20), (8, 20))  # µm, down and across
            for image, plane, size in zip(
                images[3 * row : 3 * row + 3], planes, sizes, strict=True
            ):
                shown = np.ma.filled(image.get_array(), np.nan)
                np.testing.assert_array_equal(shown, plane)
                left, right, bottom, top = image.get_extent()
                assert (bottom - top, right - left) == pytest.approx(size)
    limits = [[image.get_clim() for image in axes.get_images()] for axes in figure.axes]
    assert limits[0] == limits[1] == limits[2]  # else brightness could not be compared
    assert save(figure, tmp_path / "mosaic.png").std() > 0


def test_masked_patches_are_not_grey(tmp_path: Path) -> None:
    def colourful(filled: npt.NDArray[Any]) -> float:
        inputs, seen, _ = sample_cuboids(1)
        pixels = save(reconstruction_mosaic(inputs, seen, filled, (1.0, 1.0, 1.0)), path)
        return float((np.ptp(pixels, axis=2) > 0.1).mean())

    path = tmp_path / "mosaic.png"
    inputs, seen, filled = sample_cuboids(1)
    assert colourful(seen) == pytest.approx(2 * colourful(filled), rel=0.2)
    assert colourful(inputs) > 0


def test_the_token_map_is_to_the_scale_of_its_section(tmp_path: Path) -> None:
    section = np.random.default_rng(0).normal(size=(60, 40)).astype(np.float32)
    components = np.zeros((6, 4, 3), np.float32)
    components[:3, :, 0] = 1.0
    components[:, :2, 1] = 1.0
    figure = token_map(section, components, [0.5, 0.25, 0.0], (2.0, 3.0))
    left, right = figure.axes
    (grey,), (colours,) = left.get_images(), right.get_images()
    assert list(grey.get_extent()) == list(colours.get_extent()) == [0, 120, 120, 0]
    shown = np.asarray(colours.get_array())
    np.testing.assert_array_equal(shown, components)  # blue, the same everywhere, is dark
    assert "50%, 25%, 0%" in right.get_title(loc="left")
    assert save(figure, tmp_path / "tokens.png").std() > 0
