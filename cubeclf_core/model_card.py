"""What goes with weights, for people: what they are, what they saw, what they are good for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cubeclf_core.brains import Brain
from cubeclf_core.normalise import NORMALISATION
from cubeclf_core.vit import Vit3d

NORMALISATIONS = {
    "contrast": "of each channel of each cuboid, (x - mean) / √(deviation × the larger of "
    "0.12 mean and 0.1 deviation)"
}


def model_card(
    backbone: Vit3d,
    brains: Sequence[Brain],
    *,
    weights: str,
    settings: str,
    training: Mapping[str, object],
    results: Mapping[str, float],
    untrained: Mapping[str, float] | None = None,
    before: str = "untrained",
    pictures: Mapping[str, str] | None = None,
) -> str:
    """Describe an exported backbone in Markdown; nothing is said that was not given.

    Parameters
    ----------
    backbone
        As exported.
    brains
        That it was trained on.
    weights
        Name of the file beside the card.
    settings
        The whole config of the run, YAML.
    training
        What it took, by name: objective, steps, cuboids seen, ``wall_time_s`` (in seconds, shown in
        words), device and whatever else there is to tell.
    results
        Final metrics by the names they have in ``metrics.jsonl``.
    untrained
        The same metrics, where they are known, of the network before training.
    before
        What that network was: "untrained", unless it started from other weights.
    pictures
        Title to path, relative to the card.
    """
    config = backbone.config
    parameters = sum(p.numel() for p in backbone.parameters())
    channels = "signal" if config.channels == 1 else "signal and background"
    network = {
        "network": f"3D vision transformer, size {config.size}",
        "parameters": f"{parameters:,}",
        "channels": f"{config.channels} ({channels})",
        "cuboid": f"{by(config.cuboid_shape)} voxels (z y x)",
        "voxel size": f"{by(config.voxel_size_um)} µm",
        "patch": f"{by(config.patch_um)} µm",
        "tokens of a cuboid": f"{by(config.grid)} patches",
        "normalisation": NORMALISATIONS.get(NORMALISATION, NORMALISATION),
    }
    names = ", ".join(_cell(brain.name) for brain in brains)
    parts = [
        f"# {weights}",
        f"A backbone for cuboids of whole-brain microscopy, pretrained without labels on {names}.",
        table(("property", "value"), network.items()),
        "## Data",
        table(
            ("brain", "voxels (z y x)", "voxel size, µm", "channels", "type"),
            [
                (b.name, by(v.shape), by(v.voxel_size_um), v.n_channels, v.dtype)
                for b in brains
                for v in (b.volume,)
            ],
        ),
        "## Training",
        table(("", ""), [told(name, value) for name, value in training.items()]),
        "## Results",
        _results(results, untrained or {}, before),
        *(f"![{title}]({path})" for title, path in (pictures or {}).items()),
        "## Limits",
        _limits(backbone, names),
        "## Use",
        f"```sh\ncubeclf-finetune --backbone {weights} --brains LABELLED.yaml --out OUT\n```",
        "## Licence",
        "The owner of the data above decides on the licence of these weights.",
        "## Settings",
        fenced(settings),
    ]
    return "\n\n".join(parts) + "\n"


def _limits(backbone: Vit3d, names: str) -> str:
    size = by(backbone.config.voxel_size_um)
    limits = [
        f"The training used {names}. This card holds no result on other brains, species, stains or "
        "microscopes: measure on labelled cells of your own before you rely on it.",
        f"It takes voxels of {size} µm; cubeclf resamples other data to them.",
        "Another gain of the camera leaves its input as it was. Another offset, or a background "
        "that was subtracted, does not: it changes contrast, which counts.",
        "Results of probes are of the labelled cells that the run was given; all others are of the "
        "brains that it was trained on.",
        "It is no classifier: without fine-tuning it says nothing about what is a cell.",
    ]
    return "\n".join(f"- {limit}" for limit in limits)


def _results(results: Mapping[str, float], untrained: Mapping[str, float], before: str) -> str:
    if not results:
        return "None were measured."
    if not untrained.keys() & results.keys():
        return table(("metric", "value"), [(k, f"{v:.4g}") for k, v in results.items()])
    rows = [
        (name, f"{value:.4g}", f"{untrained[name]:.4g}" if name in untrained else "")
        for name, value in results.items()
    ]
    return table(("metric", "trained", before), rows)


def told(name: str, value: object) -> tuple[str, str]:
    """Make a row of a table of what has a name."""
    if name == "wall_time_s" and isinstance(value, int | float):
        minutes, seconds = divmod(round(value), 60)
        hours, minutes = divmod(minutes, 60)
        return "wall time", f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
    if isinstance(value, int) and not isinstance(value, bool):
        return name.replace("_", " "), f"{value:,}"
    return name.replace("_", " "), str(value)


def table(header: Sequence[str], rows: Any) -> str:
    """Write a table in Markdown, which holds whatever the values are."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", r"\|")


def by(values: Sequence[float]) -> str:
    """Write sizes: 20 × 50 × 50."""
    return " × ".join(f"{value:g}" for value in values)


def fenced(text: str, language: str = "yaml") -> str:
    """Quote text between fences longer than any within it."""
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
