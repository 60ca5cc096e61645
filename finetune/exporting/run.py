"""The run of `cubeclf-export`: a trained classifier as one file for inference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn

from cubeclf_core.bundle import CARD, save_bundle
from cubeclf_core.checkpoint import BUNDLED, Header
from cubeclf_core.classifier import LoadedClassifier, load_classifier
from cubeclf_core.console import say
from cubeclf_core.errors import InputError, RunFailed
from cubeclf_core.exported import save_exported
from cubeclf_core.files import check_output, replacing
from cubeclf_core.heads import CELL_CLASS, HeadConfig, TwoClasses
from cubeclf_core.keras_file import import_keras, save_keras
from cubeclf_core.metrics import classification_metrics
from cubeclf_core.onnx_file import check_onnx, quantise, save_onnx
from cubeclf_core.trained import Classifier, load_trained
from cubeclf_core.vit import Vit3d
from finetune.config import ExportConfig
from finetune.exporting.card import export_card
from finetune.exporting.compared import Compared, read_compared, simulate_compared
from finetune.exporting.fresh import predict_afresh
from finetune.exporting.keras_network import build_model
from finetune.exporting.wrapped import Probabilities, SignalAlone

TOLERANCE = 1e-4
MOST_LOST = 0.01
"""Of average precision, by int8."""

Results = dict[str, str]  # name: what is to be told
_SUFFIXES = {"keras": ".keras", "onnx": ".onnx", "torch": ".pt2", "bundle": ""}


@dataclass(frozen=True)
class Wish:
    """What is to be exported.

    Attributes
    ----------
    classifier
        As it was trained.
    network
        The same, with two classes where these are asked for; raw counts to logits.
    header
        Of the file to be.
    threshold
        From which on a candidate is a cell.
    """

    classifier: Classifier
    network: nn.Module
    header: Header
    threshold: float


def export(config: ExportConfig) -> None:
    """Export, read back, compare, and only then put the file in place.

    Raises
    ------
    InputError
        If there is no classifier, the file exists, or the format cannot hold the classifier.
    RunFailed
        If a probability of the file differs from the trained network's by more than 1e-4.
    """
    card = _check_place(config)
    wish = _wish(config)
    taken = wish.classifier.backbone.config
    compared = (
        read_compared(config.brains, taken, config.voxel_size_um)
        if config.brains
        else simulate_compared(taken)
    )
    labels = compared.labels
    if config.int8 and (labels is None or not 0 < labels.mean() < 1):
        raise InputError("--int8 needs brains with cells and others, to measure what is lost")
    with replacing(config.out) as temporary:
        _write(config, wish, temporary)
        results = _compare(config, wish, compared, temporary)
        if config.int8:
            results |= _make_int8(wish, compared, temporary)
        text = export_card(config.out.name, config.format, wish.header, wish.classifier, results)
        if config.format == "bundle":
            (temporary / CARD).write_text(text, encoding="utf-8")
    if config.format != "bundle":
        with replacing(card) as beside:
            beside.write_text(text, encoding="utf-8")
    say(f"exported    {config.out}")
    for name, value in results.items():
        say(f"{name}: {value}")
    say(f"card        {card}")


def _check_place(config: ExportConfig) -> Path:
    """Check that the output can be written, and say where its card goes."""
    bundle = config.format == "bundle"
    inputs = [config.run, *config.brains]
    marker = BUNDLED if bundle else None
    check_output(config.out, overwrite=config.overwrite, inputs=inputs, marker=marker)
    suffix, expected = config.out.suffix, _SUFFIXES[config.format]
    if bundle and suffix in {*_SUFFIXES.values(), ".safetensors"} - {""}:
        raise InputError(f"--out is {config.out}; a bundle is a folder: leave out {suffix}")
    if not bundle and suffix != expected:
        raise InputError(f"--out is {config.out}; --format {config.format} needs {expected}")
    if bundle:
        return config.out / CARD
    card = config.out.with_name(f"{config.out.name}.md")
    check_output(card, overwrite=config.overwrite, inputs=inputs, marker=None)
    return card


def _wish(config: ExportConfig) -> Wish:
    """Load the classifier and see that the format can hold what is asked for."""
    if config.format == "keras":
        import_keras()
    if config.format == "onnx":
        check_onnx()
    classifier, header = load_trained(config.run)
    chosen = header.training.get("threshold", 0.5) if config.threshold is None else config.threshold
    threshold = float(chosen)
    training = {**header.training, "threshold": threshold}
    network: nn.Module = classifier
    classes = header.head["classes"]
    if len(classes) > 2 and (config.two_classes or config.format == "keras"):
        if not config.two_classes:
            raise InputError(
                f"{config.run} knows {', '.join(classes)}; cellfinder knows two classes: add "
                "--two-classes to put all others than cells together"
            )
        network = TwoClasses(network).eval()
        header = replace(header, head={**header.head, "classes": list(HeadConfig.classes)})
    if config.format == "keras" and not 0 < threshold < 1:
        raise InputError(
            f"the threshold is {threshold:g}; a .keras file needs one above 0 and below 1: give "
            "--threshold"
        )
    if config.int8 and not isinstance(classifier.backbone, Vit3d):
        raise InputError("--int8 is for vision transformers; a residual network has no products")
    return Wish(classifier, network, replace(header, training=training), threshold)


def _write(config: ExportConfig, wish: Wish, path: Path) -> None:
    """Write the file."""
    if config.format == "keras":
        save_keras(path, build_model(wish.classifier, wish.threshold), wish.header)
    elif config.format == "bundle":
        save_bundle(path, wish.classifier, wish.header)
    else:
        taken = wish.classifier.backbone.config
        shape = (2, 2, *taken.cuboid_shape)
        network, dynamic = wish.network, {0: torch.export.Dim("batch")}
        if taken.channels == 1:
            network, dynamic = SignalAlone(network), {**dynamic, 1: torch.export.Dim("channels")}
        if config.format == "onnx":
            network = Probabilities(network)
        save = save_onnx if config.format == "onnx" else save_exported
        save(path, network.eval(), torch.rand(shape), dynamic, wish.header)


def _compare(config: ExportConfig, wish: Wish, compared: Compared, path: Path) -> Results:
    """Compare what two readers make of the file with what the trained network says."""
    expected = _trained(wish).predict(compared.cuboids)
    given = _with_others(compared.cuboids)
    shown = _moved(expected, wish.threshold) if config.format == "keras" else expected
    differences = (
        np.abs(predict_afresh(config.format, path, given) - shown).max(),
        np.abs(load_classifier(path, exact=True).predict(given) - expected).max(),
    )
    difference = float(max(differences))
    if not difference <= TOLERANCE:  # NaN is no agreement
        raise RunFailed(
            f"the exported probabilities differ from the network's by {difference:.2g}; "
            f"expected at most {TOLERANCE:g}; nothing was written"
        )
    return {"largest difference in probability": f"{difference:.1e}, on {compared.what}"}


def _make_int8(wish: Wish, compared: Compared, path: Path) -> Results:
    """Quantise the file and measure what that costs."""
    labels = compared.labels
    assert labels is not None
    before = _trained(wish).predict(compared.cuboids)[:, CELL_CLASS]
    quantise(path, path)
    after = predict_afresh("onnx", path, _with_others(compared.cuboids))[:, CELL_CLASS]
    exact, found = (classification_metrics(labels, p)["average_precision"] for p in (before, after))
    loss = exact - found
    if not loss <= MOST_LOST:
        raise RunFailed(
            f"in int8 the average precision falls from {exact:.4f} to {found:.4f} on "
            f"{compared.what}; expected a loss of at most {MOST_LOST:g}; nothing was written"
        )
    told = f"{found:.4f}, of float32 {exact:.4f}: a loss of {loss:.4f}, on {compared.what}"
    return {"average precision in int8": told}


def _trained(wish: Wish) -> LoadedClassifier:
    return LoadedClassifier(wish.network, wish.classifier.backbone.config)


def _with_others(cuboids: Float[Tensor, "n c z y x"]) -> Float[Tensor, "n two z y x"]:
    """Give cuboids of one channel a second, which must not matter."""
    return cuboids if cuboids.shape[1] > 1 else torch.cat([cuboids, cuboids.flip(0)], dim=1)


def _moved(probabilities: npt.NDArray[np.float64], threshold: float) -> npt.NDArray[np.float64]:
    """Make one half of a probability of `threshold`, as cellfinder takes the likelier class."""
    moved = probabilities * [threshold, 1 - threshold]  # of no cell, of a cell
    return np.asarray(moved / moved.sum(1, keepdims=True), np.float64)
