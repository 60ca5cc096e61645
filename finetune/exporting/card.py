"""The card of an exported classifier: what it takes, where it comes from, how to use it."""

from __future__ import annotations

from collections.abc import Mapping

from cubeclf_core.checkpoint import Header
from cubeclf_core.model_card import NORMALISATIONS, by, fenced, table, told
from cubeclf_core.trained import Classifier
from cubeclf_core.vit import Vit3d
from finetune.exporting.fresh import USES

_FORMATS = {
    "keras": "a model of keras, for cellfinder and brainmapper",
    "onnx": "an ONNX model",
    "torch": "a torch.export program",
    "bundle": "weights, config and card",
}
_ELSEWHERE = {
    "keras": "In cellfinder and brainmapper give it as the trained model; it takes both channels "
    "as they are, raw: leave out cellfinder's own normalisation. They know the likelier class "
    "only, so the threshold became one half: probabilities above are moved accordingly. "
    "`cubeclf_core.load_classifier` gives them as they were calibrated. "
    "`cellfinder_train --continue-training` goes on from it.",
    "bundle": "`cubeclf-classify --classifier` takes the folder; `cubeclf-finetune --backbone` "
    "starts from the backbone in it, which has seen the labels below.",
}
_HUB = "---\nlibrary_name: cubeclf\ntags:\n- microscopy\n- cell-detection\n---"


def export_card(
    name: str, kind: str, header: Header, classifier: Classifier, results: Mapping[str, str]
) -> str:
    """Describe an exported classifier in Markdown; nothing is said that was not given.

    Parameters
    ----------
    name
        Of the file or folder.
    kind
        One of the formats.
    header
        As it is in the file.
    classifier
        The network.
    results
        What the export measured, by name.
    """
    training = dict(header.training)
    training.pop("reference", None)  # by which drift is noticed: hundreds of numbers
    labels = training.pop("labels", None)
    if isinstance(labels, Mapping):
        brains = ", ".join(map(str, labels.get("brains", [])))
        training["labels"] = f"{labels.get('n')}, of which {labels.get('cells')} cells, of {brains}"
    backbone = training.pop("backbone", None)
    if isinstance(backbone, Mapping):
        training["backbone"] = backbone.get("backbone", backbone.get("objective", "pretrained"))
    parts = [
        *([_HUB] if kind == "bundle" else []),
        f"# {name}",
        "A classifier that tells cells from what else cell detection finds in whole-brain "
        f"microscopy, as {_FORMATS[kind]}.",
        table(("property", "value"), _properties(header, classifier).items()),
        "## Use",
        "`cuboids` are raw counts around candidates, float32, (n, channel, z, y, x).",
        fenced(USES[kind].example(name), "python"),
        *([_ELSEWHERE[kind]] if kind in _ELSEWHERE else []),
        "## Training",
        table(("", ""), [told(key, value) for key, value in training.items()]),
        "## Measured at export",
        table(("", ""), results.items()),
        "## Limits",
        _limits(classifier),
        "## Licence",
        "The owner of the labelled data decides on the licence of these weights.",
    ]
    return "\n\n".join(parts) + "\n"


def _properties(header: Header, classifier: Classifier) -> dict[str, str]:
    backbone = classifier.backbone
    config = backbone.config
    if isinstance(backbone, Vit3d):
        network = f"3D vision transformer, size {backbone.config.size}"
    else:
        network = f"3D residual network, {backbone.config.depth} layers"
    channels = "signal; further ones are not looked at"
    return {
        "network": f"{network}, {classifier.head.config.kind} head",
        "parameters": f"{sum(p.numel() for p in classifier.parameters()):,}",
        "channels": "signal and background" if config.channels == 2 else channels,
        "cuboid": f"{by(config.cuboid_shape)} voxels (z y x)",
        "voxel size": f"{by(config.voxel_size_um)} µm",
        "normalisation, inside": NORMALISATIONS.get(config.normalisation, config.normalisation),
        "classes": ", ".join(header.head["classes"]),
        "threshold": f"a cell from a probability of {header.training['threshold']:.4g} on",
        "temperature, inside": f"{float(classifier.head.temperature):.4g}",
    }


def _limits(classifier: Classifier) -> str:
    size = by(classifier.backbone.config.voxel_size_um)
    limits = [
        "Its probabilities are calibrated for candidates with the share of cells that the labels "
        "had.",
        "This card holds no result on other brains, stains or microscopes: look at the report of "
        "the run, and measure on labelled cells of your own.",
        f"It takes voxels of {size} µm; data of another size is resampled by whoever calls it, as "
        "cellfinder and cubeclf do.",
    ]
    return "\n".join(f"- {limit}" for limit in limits)
