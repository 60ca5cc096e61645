from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cubeclf_core.backbones import build_backbone
from cubeclf_core.draws import Draws
from cubeclf_core.engine import make_fabric
from cubeclf_core.errors import InputError, TrainingDiverged
from cubeclf_core.heads import HeadConfig
from cubeclf_core.metrics import classification_metrics
from cubeclf_core.regression import fit_logistic, mean_of, widened
from cubeclf_core.resnet import ResNet3d, ResNet3dConfig
from cubeclf_core.trained import Classifier, fresh_classifier
from cubeclf_core.vit import Vit3dConfig
from finetune.adapt import (
    choose_trained,
    merge_low_rank,
    parameter_groups,
    settle_statistics,
    trained_norms,
)
from finetune.config import FinetuneConfig
from finetune.examples import Features, keep_features
from finetune.labels import Labelled, join
from finetune.parts import Split
from finetune.training import Training, fit_head, prior_logits
from finetune.trials import Trials, share_flipped

NANO = Vit3dConfig(size="nano", channels=1)


def make_config(**changes) -> FinetuneConfig:
    unused = Path("unused")
    return FinetuneConfig(**{"backbone": "unused", "out": unused, "brains": (unused,), **changes})


def make_trials(base: Classifier, data: Labelled, splits=(), **changes) -> Trials:
    told: list[dict] = []
    trials = Trials(
        config=make_config(**changes),
        base=base,
        data=data,
        splits=splits,
        fabric=make_fabric("32-true"),
        log=told.append,
        trim=lambda step: None,
        tell=lambda line: None,
        checkpoint=None,
    )
    trials.told = told  # type: ignore[attr-defined]
    return trials


def network(head: str = "linear", classes=("no cell", "cell"), seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(build_backbone(NANO, seed=0), HeadConfig(kind=head, classes=classes))


def halves(n: int) -> Split:
    index = np.arange(n)
    return Split(index[index % 4 > 0], index[index % 4 == 0], np.zeros(0, np.int64), "by hand")


def auc(labels, probability) -> float:
    return classification_metrics(labels, probability)["auc"]


@pytest.mark.parametrize("head", ["linear", "mlp", "attention"])
def test_a_head_learns_and_the_frozen_backbone_stays_bit_identical(head, blobs, predict) -> None:
    base = network(head)
    before = {name: tensor.clone() for name, tensor in base.backbone.state_dict().items()}
    classifier = (
        make_trials(base, blobs(36, 0), head=head, learning_rate=1e-2).run(False).classifier
    )
    after = classifier.backbone.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    unseen = blobs(60, 1)
    assert auc(unseen.labels, predict(classifier, unseen.cuboids)) > 0.9


def test_shuffled_labels_teach_nothing(blobs, predict, fit_at_once) -> None:
    """The guard of the test above: what it finds is in the labels."""
    data = blobs(36, 0)
    mixed = replace(data, labels=np.random.default_rng(1).permutation(data.labels))
    classifier = fit_at_once(network(), mixed)
    unseen = blobs(60, 1)
    assert auc(unseen.labels, predict(classifier, unseen.cuboids)) < 0.8


def test_probabilities_have_the_prevalence_of_the_training_labels(
    blobs, predict, fit_at_once
) -> None:
    data = blobs(90, 0)
    classifier = fit_at_once(network(), data)
    assert abs(predict(classifier, data.cuboids).mean() - data.labels.mean()) < 0.05


def noisy(data: Labelled, name: str, kept: np.ndarray) -> Labelled:
    """Some labels of another brain, whose camera is worse."""
    noise = torch.randn(data.cuboids.shape, generator=torch.Generator().manual_seed(0))
    worse = replace(data, cuboids=data.cuboids + 30 * noise, brains=[name] * len(data))
    return worse.subset(np.flatnonzero(kept))


def two_brains(blobs) -> Labelled:
    """Nearly all labels of one brain are cells, and of the other, noisier one nearly none."""
    a, b, number = blobs(90, 0), blobs(90, 1), np.arange(90)
    mostly_cells = a.subset(np.flatnonzero((a.labels == 1) | (number % 15 == 1)))
    return join([mostly_cells, noisy(b, "noisy", (b.labels == 0) | (number % 15 == 0))])


def test_a_head_learns_within_brains(blobs, fit_at_once, predict) -> None:
    data, unseen = two_brains(blobs), blobs(60, 2)
    as_one = replace(data, brains=["one"] * len(data))
    worse = noisy(unseen, "unseen", np.ones(60, bool))

    def gap(data: Labelled) -> float:
        """How much more like cells artefacts look where there is less noise; in log odds."""
        classifier = fit_at_once(network(), data)
        found = [predict(classifier, u.cuboids)[unseen.labels == 0] for u in (unseen, worse)]
        good, bad = (np.log(p / (1 - p)).mean() for p in found)
        return float(good - bad)

    assert gap(as_one) > 0.5
    assert abs(gap(data)) < 0.7 * gap(as_one)


@pytest.mark.slow
def test_training_begins_with_the_intercepts_that_the_head_was_fitted_with(blobs) -> None:
    """In one brain only the brightest objects count as cells, in the other all but the dimmest."""
    parts = []
    for name, dimmest, seed in (("strict", 1.4, 0), ("generous", 0.6, 1)):
        objects = blobs(180, seed).subset(np.arange(0, 180, 3))
        brightness = torch.linspace(0.2, 1.8, 60)
        cuboids = 100 + brightness[:, None, None, None, None] * (objects.cuboids - 100)
        labels = (brightness.numpy() > dimmest).astype(np.int64)
        parts.append(replace(objects, cuboids=cuboids, labels=labels, brains=[name] * 60))
    still = {"freeze": False, "epochs": 1, "batch_size": 32, "learning_rate": 1e-12, "copies": 1}

    def loss(change) -> float:
        """The loss of an epoch that moves nothing, with the intercepts changed before it."""
        trials = make_trials(network(), join(parts), **still)
        begin = trials._training  # type: ignore[attr-defined]
        trials._training = lambda t, c, i: begin(t, c, change(i))  # type: ignore
        trials.run(False)
        return float(trials.told[0]["train_loss"])  # type: ignore[attr-defined]

    assert loss(lambda i: i) < loss(torch.zeros_like) - 0.05
    assert loss(torch.zeros_like) < loss(torch.negative) - 0.05


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"freeze": False}, {"patch_embed", "blocks.0", "blocks.3", "norm"}),
        ({"unfreeze_last": 2}, {"blocks.2", "blocks.3", "norm"}),
        ({"freeze": False, "unfreeze_epoch": 1, "epochs": 1}, set()),
        ({"freeze": False, "unfreeze_epoch": 1, "epochs": 2}, {"patch_embed", "blocks.0", "norm"}),
    ],
)
def test_what_is_trained_moves_and_what_is_not_stays_bit_identical(
    changes, moved: set[str], blobs
) -> None:
    base = network()
    before = {name: tensor.clone() for name, tensor in base.backbone.state_dict().items()}
    settings = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3, **changes}
    after = make_trials(base, blobs(12, 0), **settings).run(False).classifier.backbone.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    for part in ("patch_embed", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "norm"):
        names = {name for name in changed if name.startswith(f"{part}.")}
        if part in moved:
            assert names, part
        elif "patch_embed" not in moved:
            assert not names, part
    assert "pos_embed" not in changed  # sines and cosines


def test_additions_of_low_rank_leave_the_weights_and_are_merged(blobs) -> None:
    base = network()
    before = {name: tensor.clone() for name, tensor in base.backbone.state_dict().items()}
    trials = make_trials(base, blobs(12, 0), lora_rank=2, epochs=1, batch_size=4)
    after = trials.run(False).classifier.backbone.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        difference = after[name] - tensor
        if name.endswith(("attn.qkv.weight", "attn.proj.weight")):
            assert torch.linalg.matrix_rank(difference, rtol=1e-3) == 2
        else:
            assert not difference.any(), name


def test_merging_changes_nothing_but_rounding(blobs) -> None:
    classifier = network().eval()
    cuboids = blobs(6, 0).cuboids
    plain = classifier(cuboids)
    choose_trained(classifier, freeze=False, last=None, rank=3, seed=0)
    torch.testing.assert_close(classifier(cuboids), plain)
    for name, parameter in classifier.named_parameters():
        if name.endswith(".up"):
            nn.init.normal_(parameter, std=0.1)
    added = classifier(cuboids)
    assert (added - plain).abs().max() > 1e-3
    merge_low_rank(classifier)
    torch.testing.assert_close(classifier(cuboids), added)
    assert not any("parametrizations" in name for name in classifier.state_dict())


def test_rates_fall_towards_the_input() -> None:
    classifier = network()
    choose_trained(classifier, freeze=False, last=None, rank=None, seed=0)
    groups = parameter_groups(classifier, rate=1.0, layer_decay=0.5, weight_decay=0.1)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    backbone = classifier.backbone
    assert rate[id(classifier.head.last.weight)] == 1
    assert rate[id(backbone.norm.weight)] == rate[id(backbone.blocks[3].mlp.fc1.weight)] == 0.5
    assert rate[id(backbone.blocks[0].mlp.fc1.weight)] == 0.5**4
    assert rate[id(backbone.patch_embed.proj.weight)] == 0.5**5
    assert decay[id(backbone.blocks[0].mlp.fc1.weight)] == 0.1
    assert decay[id(backbone.blocks[0].mlp.fc1.bias)] == 0
    trained = {id(p) for p in classifier.parameters() if p.requires_grad}
    assert trained == set(rate)


@pytest.mark.parametrize(("last", "rank"), [(9, None), (None, 2)])
def test_a_residual_network_has_stages_and_no_attention(last, rank) -> None:
    classifier = Classifier(ResNet3d(ResNet3dConfig(channels=1)))
    with pytest.raises(InputError, match="4 blocks" if last else "no attention"):
        choose_trained(classifier, freeze=False, last=last, rank=rank, seed=0)
    with pytest.raises(InputError, match="vision transformer"):
        Classifier(ResNet3d(ResNet3dConfig(channels=1)), HeadConfig(kind="attention"))


def test_a_residual_network_is_trained_and_its_frozen_statistics_stay(blobs) -> None:
    torch.manual_seed(0)
    base = Classifier(ResNet3d(ResNet3dConfig(channels=1)))
    before = {name: tensor.clone() for name, tensor in base.backbone.state_dict().items()}
    trials = make_trials(base, blobs(8, 0), unfreeze_last=1, epochs=1, batch_size=2, copies=1)
    after = trials.run(False).classifier.backbone.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"stage4"}


@pytest.mark.slow
def test_a_residual_network_starts_from_a_head_that_fits_what_it_says_in_training(blobs) -> None:
    torch.manual_seed(0)
    base = Classifier(ResNet3d(ResNet3dConfig(channels=1)))
    settings = {"freeze": False, "epochs": 1, "batch_size": 4, "copies": 2, "learning_rate": 1e-9}
    trials = make_trials(base, blobs(24, 0), **settings)
    trials.run(False)
    assert trials.told[0]["train_loss"] < math.log(2)  # of a network that says nothing


@pytest.mark.parametrize("kind", ["linear", "mlp", "attention"])
def test_a_head_that_is_not_fitted_first_says_the_shares_of_the_classes(kind, blobs) -> None:
    data = blobs(12, 0)
    trials = make_trials(
        network(kind), data, backbone="scratch:vit-nano", freeze=False, head=kind, epochs=1
    )
    begun: list[dict[str, torch.Tensor]] = []
    make = trials._training

    def watched(trial, classifier, intercepts):
        begun.append({n: t.clone() for n, t in classifier.head.state_dict().items()})
        return make(trial, classifier, intercepts)

    trials._training = watched
    trials.run(False)
    (head,) = begun
    torch.testing.assert_close(head["last.bias"], prior_logits(data.labels, 2))
    assert (head["mean"] == 0).all()
    assert (head["deviation"] == 1).all()


def test_parts_of_a_batch_hold_all_classes(blobs) -> None:
    """As a normalisation that is trained goes by what it is given at a time."""
    data = blobs(12, 0)
    trials = make_trials(network(), data, freeze=False, epochs=1, batch_size=8)
    seen: list[set[int]] = []
    make = trials._training

    def watched(*arguments):
        training = make(*arguments)
        training.parts = 2
        own = training.examples

        class Watched:
            def training(self, index, draws):
                seen.append(set(data.labels[index.numpy()]))
                return own.training(index, draws)

        training.examples = Watched()
        return training

    trials._training = watched
    trials.run(False)
    assert len(seen) == 20
    assert all(classes == {0, 1} for classes in seen)


@pytest.mark.slow
def test_random_weights_start_from_a_head_that_says_no_more_than_the_shares(blobs) -> None:
    """A head that was fitted on what they say has a loss of dozens as soon as they change."""
    torch.manual_seed(0)
    base = Classifier(ResNet3d(ResNet3dConfig(channels=1)))
    settings = {"freeze": False, "epochs": 1, "batch_size": 4, "copies": 1, "learning_rate": 1e-3}
    trials = make_trials(base, blobs(12, 0), backbone="resnet18", **settings)
    trials.run(False)
    assert trials.told[0]["train_loss"] < 4 * math.log(2)


@pytest.mark.parametrize(
    "changes", [{"freeze": False}, pytest.param({"lora_rank": 4}, marks=pytest.mark.slow)]
)
def test_training_a_network_lowers_the_loss_and_finds_cells(changes, blobs, predict) -> None:
    """From a head that is random, which a linear one would not be."""
    unseen = blobs(60, 1)
    settings = {"epochs": 5, "batch_size": 16, "learning_rate": 2e-3, "head": "mlp", **changes}
    trials = make_trials(network("mlp"), blobs(36, 0), **settings)
    classifier = trials.run(False).classifier
    losses = [line["train_loss"] for line in trials.told]
    assert losses[-1] < 0.8 * losses[0]
    assert auc(unseen.labels, predict(classifier, unseen.cuboids)) > 0.9


def test_the_classifier_is_the_average_of_its_weights_over_steps(blobs) -> None:
    """Not the last: with a rate that is far too high these lie far apart."""
    data, weights = blobs(12, 0), []
    base = network("mlp")
    trials = make_trials(base, data, head="mlp", epochs=2, batch_size=4, learning_rate=1.0)
    make = trials._training

    def watched(*arguments):
        training = make(*arguments)
        step = training._step

        def taken(number: int) -> float:
            loss = step(number)
            weights.append(training.network.last.weight.detach().clone())
            return loss

        training._step = taken
        return training

    trials._training = watched
    final = trials.run(False).classifier.head.last.weight
    assert not torch.allclose(final, weights[-1], atol=1e-3)
    lowest, highest = torch.stack(weights).amin(0), torch.stack(weights).amax(0)
    assert ((final >= lowest - 1e-4) & (final <= highest + 1e-4)).float().mean() > 0.9


@pytest.mark.slow
def test_statistics_are_those_of_averaged_weights_on_batches_of_all_classes(blobs) -> None:
    """Labels come as files have them, one class after the other."""
    torch.manual_seed(0)
    base = Classifier(ResNet3d(ResNet3dConfig(channels=1)))
    unsorted = blobs(24, 0)
    data = unsorted.subset(np.argsort(-unsorted.labels, kind="stable"))
    trials = make_trials(
        base, data, freeze=False, epochs=2, batch_size=4, copies=1, learning_rate=1e-3
    )
    classifier = trials.run(False).classifier.eval()
    kept = classifier.backbone.stage4[1].branch[4]
    found = kept.running_mean.clone(), kept.running_var.clone()
    mixed = torch.arange(24).view(3, 8).T  # cells among the others, in each of the parts
    settle_statistics(classifier, trained_norms(classifier), [data.cuboids[i] for i in mixed])
    torch.testing.assert_close(kept.running_mean, found[0], rtol=0.05, atol=0.05)
    torch.testing.assert_close(kept.running_var, found[1], rtol=0.05, atol=0)


def test_the_best_epoch_by_what_is_held_out_is_kept_and_all_are_learned_from_then(blobs) -> None:
    data = blobs(40, 0)
    changes = {"freeze": False, "epochs": 4, "batch_size": 8, "learning_rate": 1e-3, "head": "mlp"}
    trials = make_trials(network("mlp"), data, [halves(40)], **changes)
    outcome = trials.run(False)
    held = [line for line in trials.told if "fold" in line]
    last = [line for line in trials.told if line["trial"] == "all labels"]
    precision = [line["validation_average_precision"] for line in held]
    loss = [line["validation_loss"] for line in held]
    best = max(range(len(held)), key=lambda i: (precision[i], -loss[i])) + 1
    assert len(last) == outcome.epochs == best
    assert "validation_loss" not in last[0]
    assert [line["step"] for line in trials.told] == list(range(len(held) + len(last)))
    np.testing.assert_array_equal(outcome.held_out, halves(40).held_out)
    assert outcome.logits.shape == (10, 2)
    found = nn.functional.cross_entropy(
        outcome.logits, torch.from_numpy(data.labels[outcome.held_out])
    )
    assert float(found) == pytest.approx(loss[best - 1], rel=1e-5)


def test_a_fitted_head_stays_where_training_makes_it_worse(blobs, fit_at_once, predict) -> None:
    data = blobs(40, 0)
    ruinous = {"freeze": False, "epochs": 2, "batch_size": 8, "learning_rate": 0.3}
    outcome = make_trials(network(), data, [halves(40)], **ruinous).run(False)
    assert outcome.epochs == 0
    fitted = fit_at_once(network(), data)
    kept, begun = outcome.classifier.backbone.state_dict(), fitted.backbone.state_dict()
    assert all(torch.equal(kept[name], begun[name]) for name in begun)
    np.testing.assert_allclose(  # other parts chose its factor
        predict(outcome.classifier, data.cuboids), predict(fitted, data.cuboids), atol=0.01
    )


def test_a_training_that_diverges_says_so(blobs) -> None:
    ruinous = {"freeze": False, "epochs": 3, "batch_size": 8, "learning_rate": 1e6}
    with pytest.raises(TrainingDiverged, match="try a lower learning_rate"):
        make_trials(network(), blobs(40, 0), [halves(40)], **ruinous).run(False)


def test_a_network_that_its_last_step_spoils_has_diverged(blobs, monkeypatch) -> None:
    spoilt = torch.full((20, 2), math.nan)
    monkeypatch.setattr(Training, "_ask", lambda self, network, index: spoilt[: len(index)])
    with pytest.raises(TrainingDiverged, match="held out is no number after epoch 1; try a lower"):
        make_trials(network(), blobs(40, 0), [halves(40)], freeze=False, batch_size=8).run(False)


def test_a_training_that_no_longer_improves_ends(blobs) -> None:
    data = blobs(40, 0)
    mixed = replace(data, labels=np.random.default_rng(0).permutation(data.labels))
    trials = make_trials(
        network(), mixed, [halves(40)], freeze=False, epochs=30, patience=2, batch_size=4
    )
    trials.run(False)
    held = [line for line in trials.told if "fold" in line]
    assert len(held) < 30


def test_too_little_memory_cuts_the_batch_and_changes_nothing_but_rounding(blobs) -> None:
    data = blobs(12, 0)
    results, said = [], []
    for most in (100, 3):
        base = network()

        def full(module, inputs, most=most):
            if module.training and len(inputs[0]) > most:
                raise torch.OutOfMemoryError("out of memory")

        base.backbone.register_forward_pre_hook(full)
        trials = make_trials(base, data, freeze=False, epochs=1, batch_size=8)
        trials.tell = said.append
        results.append(trials.run(False).classifier.state_dict())
    assert said == [
        "too little memory: going on with 4 cuboids at a time",
        "too little memory: going on with 2 cuboids at a time",
    ]
    for name, tensor in results[0].items():
        torch.testing.assert_close(tensor, results[1][name], rtol=1e-3, atol=1e-4)


def test_an_error_that_is_not_of_memory_is_not_swallowed(blobs) -> None:
    base = network()

    def broken(module, inputs):
        if module.training:
            raise RuntimeError("something else")

    base.backbone.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="something else"):
        make_trials(base, blobs(12, 0), freeze=False, epochs=1, batch_size=4).run(False)


def test_three_classes_are_told_apart(blobs) -> None:
    data = blobs(60, 0)
    dim = np.arange(60) % 5 == 1
    cuboids = data.cuboids.clone()
    cuboids[torch.from_numpy(dim)] = 100 + 0.2 * cuboids[torch.from_numpy(dim)]
    three = replace(data, cuboids=cuboids, labels=np.where(dim, 2, data.labels))
    base = network(classes=("no cell", "cell", "dim"))
    outcome = make_trials(base, three, [halves(60)]).run(False)
    said = outcome.logits.argmax(1).numpy()
    assert (said == three.labels[outcome.held_out]).mean() > 0.8


@given(st.lists(st.integers(0, 50), min_size=2, max_size=4), st.integers(0, 3))
@settings(max_examples=30)
def test_prior_logits_are_the_shares_of_the_classes(counts: list[int], more: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    n = len(counts) + more
    logits = prior_logits(labels, n)
    assert logits.shape == (n,)
    assert float(logits.mean()) == pytest.approx(0, abs=1e-5)
    full = [i for i, count in enumerate(counts) if count]
    for i in full:
        for j in full:
            expected = np.log(counts[i] / counts[j])
            assert float(logits[i] - logits[j]) == pytest.approx(expected, abs=1e-4)


def test_features_are_the_classifiers_own_and_of_turned_copies(blobs) -> None:
    classifier, data = network().eval(), blobs(9, 0)
    kept = keep_features(classifier, data.cuboids, copies=3)
    assert kept.copies.shape[:2] == (3, 9)
    with torch.no_grad():
        torch.testing.assert_close(kept.copies[0], classifier.features(data.cuboids))
    assert not torch.equal(kept.copies[0], kept.copies[1])
    again = keep_features(classifier, data.cuboids, copies=3)
    assert torch.equal(kept.copies, again.copies)
    fit_head(classifier.head, kept, data.labels, data.brain_numbers, 0)
    assert classifier.head.last.weight.abs().sum() > 0


def edges(n: int, seed: int, *, axis: int) -> Labelled:
    """Cuboids alike at their centre; those of cells are dark below it, the others above it."""
    labels = (np.arange(n) % 2).astype(np.int64)
    ramp = torch.linspace(-1, 1, [20, 50, 50][axis]).sign()
    shaped = ramp.view([-1 if a == axis else 1 for a in range(3)])
    side = torch.from_numpy(labels * 2.0 - 1).view(n, 1, 1, 1, 1)
    random = torch.Generator().manual_seed(seed)
    raw = torch.poisson((100 + 30 * side * shaped).expand(n, 1, 20, 50, 50), generator=random)
    return Labelled.unplaced(raw.float(), labels, "edges")


@pytest.mark.parametrize(
    ("projection", "brains", "for_others", "both"),
    [
        (0, 1, None, True),
        (16, 1, None, True),
        (16, 2, None, False),
        (16, 1, True, False),
        (16, 2, False, True),
    ],
)
def test_a_head_is_the_mean_of_two_rules_but_for_other_brains(
    projection: int, brains: int, for_others: bool | None, both: bool, blobs
) -> None:
    data = join([replace(blobs(35, i), brains=["ab"[i % brains]] * 35) for i in range(2)])
    wanted = Vit3dConfig(size="nano", channels=1, projection=projection)
    torch.manual_seed(0)
    classifier = fresh_classifier(build_backbone(wanted, seed=0))
    kept = keep_features(classifier, data.cuboids, copies=4).copies
    trials = make_trials(copy.deepcopy(classifier), data, copies=4, for_others=for_others)
    outcome = trials.run(False)
    head = outcome.classifier.head
    scaled = ((kept - head.mean) / head.deviation).double().numpy()
    assert scaled.shape[2] == 3 * 96 + projection

    def rule(copies):
        n = len(copies)
        labels, of = (np.tile(each, n) for each in (data.labels, data.brain_numbers))
        copy_of = np.tile(np.arange(len(data)), n)
        return fit_logistic(np.concatenate(copies), labels, of, copy_of=copy_of, seed=0)

    first = rule(scaled[:, :, : projection or None])
    expected = mean_of(first, rule(scaled[:2])) if both else widened(first, scaled.shape[2])
    weight = (head.last.weight[1] - head.last.weight[0]).detach().numpy()
    np.testing.assert_allclose(weight, expected.weight[0], rtol=1e-3, atol=1e-6)
    assert outcome.features.shape == (70, projection or 3 * 96)


def test_what_holds_a_brain_out_fits_the_kind_of_head_that_all_labels_get(blobs) -> None:
    """Its logits say how sure the head of all is, though it learned from one brain itself."""
    data = join([replace(blobs(35, i), brains=["ab"[i]] * 35) for i in range(2)])
    first, second = np.split(np.arange(70), 2)
    apart = [Split(first, second, np.zeros(0, np.int64), "by hand")]
    wanted = Vit3dConfig(size="nano", channels=1, projection=16)
    torch.manual_seed(0)
    classifier = fresh_classifier(build_backbone(wanted, seed=0))
    usual, others, own = (
        make_trials(copy.deepcopy(classifier), data, apart, for_others=asked).run(False).logits
        for asked in (None, True, False)
    )
    assert torch.equal(usual, others)
    assert not torch.allclose(usual, own)


def test_z_may_have_a_direction_and_the_plane_has_none(fit_at_once, predict) -> None:
    """Half of a head learns from copies that are not flipped along z, none from such in y."""
    torch.manual_seed(0)
    along_z, along_y = (
        auc(
            edges(60, 1, axis=axis).labels,
            predict(
                fit_at_once(network(), edges(60, 0, axis=axis)), edges(60, 1, axis=axis).cuboids
            ),
        )
        for axis in (0, 1)
    )
    assert along_z > 0.9
    assert along_y < along_z - 0.1


@pytest.mark.parametrize(
    ("n", "own", "others"), [(4, 0.5, 0.5), (20, 0.5, 0.5), (100, 0.1, 0.5), (1000, 0.01, 0.5)]
)
def test_many_labels_of_one_brain_are_seldom_flipped(n: int, own: float, others: float) -> None:
    assert share_flipped(n, for_others=False) == pytest.approx(own)
    assert share_flipped(n, for_others=True) == others


@pytest.mark.parametrize(
    ("copies", "along_z"), [(1, 0.1), (2, 0.1), (3, 0.5), (4, 0.1), (5, 0.0), (16, 0.5)]
)
def test_copies_are_taken_as_often_as_asked(copies: int, along_z: float) -> None:
    n = 6000
    kept = Features(torch.arange(float(copies))[:, None, None].expand(copies, n, 1), along_z)
    taken = kept.training(torch.arange(n), Draws(0, 0, range(n)))[:, 0].long().numpy()
    share = np.bincount(taken, minlength=copies) / n
    in_plane = -(-copies // 2)
    flipped = along_z if copies > 1 else 0.0
    np.testing.assert_allclose(share[:in_plane], (1 - flipped) / in_plane, atol=0.03)
    np.testing.assert_allclose(share[in_plane:], flipped / max(1, copies - in_plane), atol=0.03)


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"freeze": False, "backbone": "scratch:vit-nano"}, marks=pytest.mark.slow),
        {"head": "mlp"},
    ],
    ids=str,
)
def test_what_is_trained_knows_the_direction_of_z_but_for_other_brains(how, predict) -> None:
    """Most of what it sees of one brain points where the brain does."""

    def surer_of_cells(**changes: bool) -> float:
        trials = make_trials(
            network(how.get("head", "linear")),
            edges(80, 0, axis=0),
            **how,
            **changes,
            epochs=8,
            batch_size=8,
            learning_rate=1e-3,
            copies=16,
        )
        tested = edges(40, 1, axis=0)
        said = predict(trials.run(False).classifier, tested.cuboids)
        return float(said[tested.labels == 1].mean() - said[tested.labels == 0].mean())

    assert surer_of_cells() > 0.3
    assert abs(surer_of_cells(for_others=True)) < 0.15
