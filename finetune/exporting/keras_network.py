"""A classifier as a model of keras that cellfinder loads: raw counts in, [no cell, cell] out."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from cubeclf_core.heads import CELL_CLASS, Head
from cubeclf_core.keras_file import against_a_cell, import_keras
from cubeclf_core.normalise import NORMALISATION
from cubeclf_core.trained import Classifier
from cubeclf_core.vit import Vit3d
from finetune.exporting.keras_layers import (
    CHANNELS,
    apply,
    array,
    channels_first,
    converted,
    normalised,
    standardise,
)
from finetune.exporting.keras_resnet import residual_features
from finetune.exporting.keras_vit import pooled, tokens

_LEARNING_RATE = 1e-4  # as cellfinder compiles models of its own


def build_model(classifier: Classifier, threshold: float) -> Any:
    """Build a compiled model of keras.

    Parameters
    ----------
    classifier
        In evaluation mode, on the CPU.
    threshold
        Probability that becomes one half, above 0 and below 1, since cellfinder takes the likelier
        class: what speaks against a cell is moved by its log odds.

    Returns
    -------
    keras.Model
        Float32 raw counts, (b, y, x, z, channel) with two channels, to (b, 2), the softmax of
        [no cell, cell].

    Raises
    ------
    InputError
        If the classifier holds a layer that stock layers of keras cannot do.
    """
    keras = import_keras()
    backbone = classifier.backbone
    z, y, x = backbone.config.cuboid_shape
    counts = keras.Input((y, x, z, CHANNELS), name="counts")
    seen = channels_first(counts)
    if backbone.config.normalisation == NORMALISATION:
        seen = normalised(seen)
    if isinstance(backbone, Vit3d):
        features = tokens(backbone, seen)
        if not classifier.head.config.takes_tokens:
            features = pooled(backbone, features)
    else:
        features = residual_features(backbone, seen)
    model = keras.Model(counts, _probabilities(classifier.head, features, threshold))
    optimizer = keras.optimizers.Adam(_LEARNING_RATE)
    model.compile(optimizer, loss="categorical_crossentropy", metrics=["accuracy"])
    return model


def _probabilities(head: Head, features: Any, threshold: float) -> Any:
    """Put the head after features or tokens, and the softmax of [no cell, cell] after it."""
    from keras import layers

    x = standardise(features, array(head.mean), array(head.deviation))
    if head.query is not None:
        query = array(head.query)[:, None] / sqrt(len(head.query))
        weights = layers.Softmax(axis=1)(apply(layers.Dense(1, use_bias=False), x, query))
        x = layers.Flatten()(layers.Dot(axes=1)([weights, x]))
    x = converted(head.hidden, x)
    temperature = float(head.temperature)
    n = len(head.config.classes)
    against = np.full(n, against_a_cell(threshold))
    against[CELL_CLASS] = 0
    kernel, bias = array(head.last.weight).T / temperature, array(head.last.bias) / temperature
    y = apply(layers.Dense(n, activation="softmax", dtype="float32"), x, kernel, bias + against)
    if n == 2:
        return y
    together = np.eye(2)[[int(i == CELL_CLASS) for i in range(n)]]
    return apply(layers.Dense(2, use_bias=False, trainable=False), y, together)
