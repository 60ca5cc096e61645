"""Settings of this package's commands; nothing here imports torch."""

from __future__ import annotations

import math
import re
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from cyclopts import Parameter

from cubeclf_core.cells import CELL
from cubeclf_core.errors import InputError, require

_HIDDEN = Parameter(show=False)
_Files = Annotated[tuple[Path, ...], Parameter(consume_multiple=True, show_default=False)]


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Train a cell/artefact classifier on a backbone with a few labels.

    Give labelled cuboids by --cubes, labelled brains by --brains, or both. OUT/report.html tells
    how good it is and which labels to look at again; OUT can be passed to `cubeclf-export`,
    `cubeclf-classify` and `cubeclf-suggest` as it is. A run that was killed goes on with the same
    command and --resume.

    Parts of the labels are held out first, whole brains or parts of one in space, to say when to
    stop, how sure to be and where the threshold lies; then all are learned from.

    Parameters
    ----------
    backbone
        Folder of a pretraining run, a .safetensors file, vit3d-nano-v1 or vit3d-tiny-v1 (which come
        with cubeclf), timm:NAME, scratch:vit-SIZE (nano, micro, tiny, small, base) or resnet18 …
        resnet152 (cellfinder's network) for random weights, a model of cellfinder's, .h5 or .keras,
        or a bundle of `cubeclf-export`.
    out
        Folder of the run.
    brains
        YAML brains files; their brains need cells, type 2 cell and anything else no cell.
    cubes
        cellfinder's training YAMLs; paths are tried against the YAML's folder, then this one.
    test
        YAML brains files of brains that are scored at the end and not used before.
    freeze
        Keep the backbone as it is and train the head alone: fast, and good with few labels.
    unfreeze_last
        Train only so many of the backbone's last blocks, and the head.
    lora_rank
        Train additions of this rank to the backbone's attention (LoRA), and the head.
    head
        linear: on the embedding. mlp: two layers. attention: pools patch tokens by itself.
    labels
        Use only so many labels, drawn at random but with cells and others in proportion.
    epochs
        Passes over the labels, ten steps at least, of all that is trained step by step.
    folds
        Parts that are held out in turn: 1 holds out one part once, 0 none. By default 5 with a
        frozen backbone, else 1.
    threshold
        f1, recall=0.99, precision=0.9, by what was held out; or a probability such as 0.42.
    channels
        Of a network from scratch or inflated from 2D: 1 signal, 2 signal and background.
    voxel_size_um
        Z Y X of brains whose files do not say.
    seed
        Of everything random.
    resume
        Go on with the run in OUT where it was stopped; starts one if there is none.
    overwrite
        Replace OUT if it exists.
    unfreeze_epoch
        Train the head alone in so many epochs at the start.
    batch_size
        Cuboids a step, as many of each class.
    learning_rate
        Peak; by default 1e-3 for a head, 1e-4 for LoRA, 5e-5 for a pretrained network and 2e-4 for
        a random one; 1e-3 for a head that is not fitted first, whatever is trained beside it.
    rate_factor
        Of these learning rates, to try others than the usual ones.
    layer_decay
        Factor of the learning rate from a block to the one before it; by default 0.75, and 1 for
        random weights and LoRA.
    weight_decay
        Of AdamW, on matrices only.
    patience
        Epochs without an improvement on what is held out, after which a training ends.
    copies
        Of each cuboid, turned in the plane and half of them flipped along z, from which a head on a
        frozen backbone learns; 16 at most. A linear one is fitted on them whatever is trained but
        random weights.
    for_others
        Whether the classifier is for other brains than those of the labels: a linear head is to
        make nothing of surroundings and of the direction of z, and what is trained sees z as
        often one way as the other, however many labels there are; by default if the labels are of
        several.
    precision
        32-true, bf16-mixed, or auto: bf16 on a GPU that has it. On a CPU no residual network is
        trained in bf16-mixed.
    classes
        Further classes and their types in cells files, {artefact: [-1]} for instance; without,
        what is no cell is one class.
    """

    backbone: str
    out: Path
    brains: _Files = ()
    cubes: _Files = ()
    test: _Files = ()
    freeze: bool = True
    unfreeze_last: int | None = None
    lora_rank: int | None = None
    head: Literal["linear", "mlp", "attention"] = "linear"
    labels: int | None = None
    epochs: int = 20
    folds: int | None = None
    threshold: str = "f1"
    channels: Literal[1, 2] = 2
    voxel_size_um: tuple[float, float, float] | None = None
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    unfreeze_epoch: Annotated[int, _HIDDEN] = 0
    batch_size: Annotated[int, _HIDDEN] = 32
    learning_rate: Annotated[float | None, _HIDDEN] = None
    rate_factor: Annotated[float, _HIDDEN] = 1.0
    layer_decay: Annotated[float | None, _HIDDEN] = None
    weight_decay: Annotated[float, _HIDDEN] = 0.05
    patience: Annotated[int, _HIDDEN] = 8
    copies: Annotated[int, _HIDDEN] = 4
    for_others: Annotated[bool | None, _HIDDEN] = None
    precision: Annotated[Literal["auto", "32-true", "bf16-mixed"], _HIDDEN] = "auto"
    classes: Annotated[dict[str, Any], _HIDDEN] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", _read_classes(self.classes))
        if not self.brains and not self.cubes:
            raise InputError("no labels: give --brains FILE, --cubes FILE, or both")
        enough = self.labels is None or self.labels >= 4
        require(enough, "--labels", self.labels, "at least 4, two of each class")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            fits = value is None or value >= least
            require(fits, f"--{name.replace('_', '-')}", value, f"at least {least}")
        both = self.unfreeze_last is not None and self.lora_rank is not None
        require(not both, "--unfreeze-last with --lora-rank", "given", "one of the two")
        rate = self.learning_rate
        positive = rate is None or (math.isfinite(rate) and rate > 0)
        require(positive, "--learning-rate", rate, "a number above 0")
        fits = math.isfinite(self.rate_factor) and self.rate_factor > 0
        require(fits, "--rate-factor", self.rate_factor, "a number above 0")
        falls = self.layer_decay is None or 0 < self.layer_decay <= 1
        require(falls, "--layer-decay", self.layer_decay, "above 0, at most 1")
        decays = math.isfinite(self.weight_decay) and self.weight_decay >= 0
        require(decays, "--weight-decay", self.weight_decay, "0 or more")
        either = not (self.resume and self.overwrite)
        require(
            either, "--resume with --overwrite", "given", "one of the two: go on, or begin anew"
        )

    @property
    def frozen(self) -> bool:
        """Whether the head alone is trained."""
        return self.freeze and self.unfreeze_last is None and self.lora_rank is None

    @property
    def fits_at_once(self) -> bool:
        """Whether nothing is trained step by step: a linear head alone is fitted."""
        return self.frozen and self.head == "linear"

    @property
    def embeds_once(self) -> bool:
        """Whether a frozen backbone is asked once, before a head learns what it says."""
        return self.frozen and self.head != "attention"

    @property
    def from_nothing(self) -> bool:
        """Whether what is trained begins with random weights, LoRA's frozen ones left aside."""
        return not self.frozen and self.lora_rank is None and is_random(self.backbone)

    @property
    def fits_first(self) -> bool:
        """Whether a linear head is fitted before anything is trained: on what a backbone knows.

        Random weights know nothing, and what they say of cuboids hardly differs. Scaled to one
        deviation, and weighed by a fitted head, the least change of theirs has a loss of dozens.
        """
        return self.head == "linear" and not self.from_nothing

    @property
    def what(self) -> str:
        """What is trained, in words."""
        head = f"a {self.head} head" if self.head != "attention" else "an attention head"
        if self.frozen:
            return f"{head} on a frozen backbone"
        if self.lora_rank is not None:
            return f"{head} and additions of rank {self.lora_rank}"
        if self.unfreeze_last is not None:
            return f"{head} and the last {self.unfreeze_last} blocks"
        return f"{head} and the whole backbone"

    @property
    def parts_held_out(self) -> int:
        """How many parts of the labels are held out in turn."""
        usual = 5 if self.frozen else 1
        return usual if self.folds is None else self.folds

    @property
    def falling(self) -> float:
        """Factor of the learning rate from a block to the one before it."""
        if self.layer_decay is not None:
            return self.layer_decay
        return 1.0 if is_random(self.backbone) or self.lora_rank is not None else 0.75

    @property
    def peak_rate(self) -> float:
        """Highest learning rate."""
        return self.rate_factor * self._usual_rate

    @property
    def _usual_rate(self) -> float:
        if self.learning_rate is not None:
            return self.learning_rate
        if self.frozen:
            return 1e-3
        # A pretrained network that is trained as fast as a random one unlearns within 200 steps.
        if self.lora_rank is not None:
            return 1e-4
        return 2e-4 if is_random(self.backbone) else 5e-5

    @property
    def head_rate(self) -> float:
        """Highest learning rate of the head: of one that is not fitted first, a higher one."""
        usual = self.fits_first or self.learning_rate is not None
        return self.peak_rate if usual else self.rate_factor * 1e-3


def is_random(backbone: str) -> bool:
    """Whether a backbone's name is one of random weights."""
    return re.fullmatch(r"scratch:.*|resnet\d+", backbone) is not None


def _read_classes(classes: dict[str, Any]) -> dict[str, Any]:
    """Read lists of types, also as a command line writes them, and check them."""
    read = {
        name: yaml.safe_load(types) if isinstance(types, str) else types
        for name, types in classes.items()
    }
    taken = [CELL]
    for name, types in read.items():
        whole = isinstance(types, list) and bool(types) and all(type(t) is int for t in types)
        require(whole, f"classes.{name}", types, "a list of types, such as [-1]")
        twice = [t for t in types if t in taken]
        require(not twice, f"classes.{name}", types, f"types of no other class ({CELL} is a cell)")
        taken += types
    return read


_LEAST = {
    "epochs": 1,
    "folds": 0,
    "seed": 0,
    "unfreeze_last": 1,
    "lora_rank": 1,
    "unfreeze_epoch": 0,
    "batch_size": 2,
    "patience": 1,
    "copies": 1,
}


@dataclass(frozen=True)
class SuggestConfig:
    """Name the candidates of a brain that are most worth labelling next.

    They are those that the classifier is unsure of, and that differ from each other and from what
    it has learned from. OUT is a cells XML that opens in napari; beside it a CSV has rank and
    probability. Label them, add them to the brains file, and run `cubeclf-finetune` again.

    Parameters
    ----------
    brain
        OME-Zarr or zarr array (also by URL), folder of TIFF planes, TIFF stack, or a brains file of
        one brain.
    classifier
        Folder of a fine-tuning run.
    cells
        Candidates, a cells XML, YAML or CSV in voxels of the brain.
    out
        Cells XML to write.
    budget
        How many.
    background
        Volume of the second channel, where BRAIN has one only.
    voxel_size_um
        Z Y X, if the brain does not say.
    seed
        Of the draw.
    overwrite
        Replace OUT if it exists.
    """

    brain: str
    _: KW_ONLY
    classifier: Path
    cells: Path
    out: Path
    budget: int = 50
    background: str | None = None
    voxel_size_um: tuple[float, float, float] | None = None
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        require(self.budget >= 1, "--budget", self.budget, "at least 1")
        xml = self.out.suffix.lower() == ".xml"
        require(xml, "--out", self.out, "a file ending in .xml")


@dataclass(frozen=True)
class ExportConfig:
    """Write the classifier of a fine-tuning run for cellfinder, ONNX, torch or a hub.

    It takes raw counts: normalisation, temperature and channels are inside. Before it is put in
    place it is read back in a process of its own and its probabilities are compared with the
    trained network's. A model card goes beside it.

    Example: cubeclf-export runs/classifier --format keras --out classifier.keras

    Parameters
    ----------
    run
        Folder of a fine-tuning run, its classifier.safetensors, or cells-tiny-v1, which comes with
        cubeclf.
    out
        File to write, such as classifier.keras; of a bundle, the folder.
    format
        keras: a .keras file that cellfinder and brainmapper take as their trained model. onnx: for
        onnxruntime (.onnx). torch: a torch.export program (.pt2), which loads without cubeclf.
        bundle: a folder with weights, config and card, for a hub and for `--backbone`.
    threshold
        Probability from which on a candidate is a cell, by default as chosen in training.
        cellfinder takes the likelier class, so in a .keras file it becomes one half.
    two_classes
        Of more than two classes make [no cell, cell]: all others together, and cells.
    int8
        Of onnx: products of matrices in int8, smaller and faster; the loss in average precision is
        measured on --brains and printed.
    brains
        YAML brains files with cells to compare on, instead of simulated cuboids.
    voxel_size_um
        Z Y X of brains whose files do not say.
    overwrite
        Replace OUT if it exists.
    """

    run: Path
    _: KW_ONLY
    out: Path
    format: Literal["keras", "onnx", "torch", "bundle"] = "torch"
    threshold: float | None = None
    two_classes: bool = False
    int8: bool = False
    brains: _Files = ()
    voxel_size_um: tuple[float, float, float] | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        fits = self.threshold is None or 0 <= self.threshold <= 1
        require(fits, "--threshold", self.threshold, "a probability")
        require(self.format == "onnx" or not self.int8, "--int8", "given", "with --format onnx")
        measured = bool(self.brains) or not self.int8
        require(measured, "--int8", "given alone", "--brains FILE too, to measure what is lost")
        kept = not (self.two_classes and self.format == "bundle")
        require(kept, "--two-classes", "given", "another format: a bundle keeps its classes")


@dataclass(frozen=True)
class ClassifyConfig:
    """Give every candidate of a brain, or of a cohort, its probability of being a cell.

    OUT gets points/cell_classification.xml and points/cells.xml, as brainmapper lays them out, the
    same as YAML with probabilities, candidates.csv in the order of the input, and a picture.
    Candidates at the border are padded and flagged, never dropped. A run that was killed goes on
    with the same command and --resume.

    Parameters
    ----------
    brain
        OME-Zarr or zarr array (also by URL), folder of TIFF planes, TIFF stack, or a brains file of
        one brain or several; OUT has a folder for each of several, and a table of all.
    classifier
        Exported file, folder of a fine-tuning run, or cells-tiny-v1, which comes with cubeclf.
        Given several times: probabilities are averaged, and the table says how far they disagree.
    cells
        Candidates, a cells XML, YAML or CSV in voxels of the brain; by default those that a brains
        file names.
    out
        Folder to write.
    background
        Volume of the second channel, where BRAIN has one only.
    voxel_size_um
        Z Y X, if the brain does not say.
    threshold
        Probability from which on a candidate is a cell; by default the classifier's own.
    embeddings
        Keep what the network sees of each candidate too, in the table and in embeddings.npy.
    tta
        Average over the eight ways to flip a cuboid: eight times the work.
    exact
        In float32 on the CPU, as the network was trained; by default the fastest way that this
        machine has and that is nearly so.
    cluster
        Share the work out by dask.distributed: a scheduler's address (tcp://HOST:8786), its
        scheduler file, or local:4 for four processes on this machine.
    resume
        Go on with the run in OUT where it was stopped; starts one if there is none.
    overwrite
        Replace OUT if it exists.
    part
        Candidates that are scored in one go, about; what a kill costs at most.
    """

    brain: str
    _: KW_ONLY
    classifier: Annotated[tuple[Path, ...], Parameter(negative=())]
    cells: Path | None = None
    out: Path
    background: str | None = None
    voxel_size_um: tuple[float, float, float] | None = None
    threshold: float | None = None
    embeddings: bool = False
    tta: bool = False
    exact: bool = False
    cluster: str | None = None
    resume: bool = False
    overwrite: bool = False
    part: Annotated[int, _HIDDEN] = 16_384

    def __post_init__(self) -> None:
        fits = self.threshold is None or 0 <= self.threshold <= 1
        require(fits, "--threshold", self.threshold, "a probability")
        require(len(self.classifier) > 0, "--classifier", "nothing", "a file or folder")
        require(self.part >= 1, "--part", self.part, "at least 1")
        either = not (self.resume and self.overwrite)
        require(
            either, "--resume with --overwrite", "given", "one of the two: go on, or begin anew"
        )
        _check_cluster(self.cluster)


@dataclass(frozen=True)
class CompareConfig:
    """Compare networks and simple rules on the same labels, label for label.

    PLAN is a YAML file that names labelled brains, contenders, budgets of labels and seeds;
    docs/comparison.md has an example. OUT/comparison.html shows what came of it; results.csv has
    every cell, differences.csv the differences to the reference with intervals. A run that was
    killed goes on with the same command and --resume, and so does one whose plan has been changed:
    what depends on the change is done anew, and nothing else.

    Example: cubeclf-compare plan.yaml --out comparison

    Parameters
    ----------
    plan
        YAML file.
    out
        Folder to write.
    contenders
        Names of some of them; all by default. Without the plan's reference differences are taken to
        the first network among them.
    workers
        Processes at a time; by default one for each core, or one if there is a GPU.
    cluster
        Share the work out by dask.distributed instead: a scheduler's address (tcp://HOST:8786), its
        scheduler file, or local:4 for four processes on this machine.
    resume
        Go on with the run in OUT where it was stopped; starts one if there is none.
    overwrite
        Replace OUT if it exists, with all cells and pretrainings that are kept there.
    """

    plan: Path
    _: KW_ONLY
    out: Path
    contenders: Annotated[
        tuple[str, ...], Parameter(consume_multiple=True, show_default=False)
    ] = ()
    workers: int | None = None
    cluster: str | None = None
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        fits = self.workers is None or self.workers >= 1
        require(fits, "--workers", self.workers, "at least 1")
        either = not (self.resume and self.overwrite)
        require(
            either, "--resume with --overwrite", "given", "one of the two: go on, or begin anew"
        )
        _check_cluster(self.cluster)


def _check_cluster(given: str | None) -> None:
    known = given is None or re.fullmatch(r"local(:[1-9]\d*)?|[a-z]+://\S+|.*\.json", given)
    expected = "local:4, tcp://HOST:PORT, or a scheduler's .json file"
    require(bool(known), "--cluster", given, expected)
