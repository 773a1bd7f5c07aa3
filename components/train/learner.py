"""A network made ready to fit: behind its augmentation, with its optimizer, and averaged where that is asked for."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from components.params import Model, Unfreeze
from components.train.augmentation import augmented
from components.train.muon import Muon

_SETTLING_BATCHES = 50


def compiled(network: Any, model: Model, batch: int, steps: int, phase: Unfreeze) -> Any:
    """The network behind its augmentation, compiled for one phase of a training.

    It takes pixels and labels and gives logits beside the labels, which the augmentation may have mixed.

    Args:
        network: from (n, side, side, 3) to (n, 1) logits.
        model: its settings.
        batch: images that one call sees; always so many.
        steps: batches in an epoch.
        phase: for how many epochs, and with what learning rate.
    """
    pixels = keras.Input(network.input_shape[1:], batch_size=batch)
    labels = keras.Input((1,), batch_size=batch)
    # `fit` on TensorFlow forgets how many there are.
    seen, mixed = (ops.reshape(x, x.shape) for x in (pixels, labels))
    seen, mixed = augmented(seen, mixed, model.augment, model.seed)
    learner = keras.Model([pixels, labels], ops.concatenate([network(seen), mixed], axis=1))

    total = steps * phase.epochs
    warmup = max(1, round(total * model.warmup))
    schedule = keras.optimizers.schedules.CosineDecay(
        phase.learning_rate / 100,
        decay_steps=max(1, total - warmup),
        alpha=1.0 if model.schedule == "constant" else 0.0,
        warmup_target=phase.learning_rate,
        warmup_steps=warmup,
    )
    common = {
        "learning_rate": schedule,
        "weight_decay": model.weight_decay,
        "use_ema": model.average > 0,
        "ema_momentum": model.average,
    }
    if model.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(momentum=0.9, nesterov=True, **common)
    elif model.optimizer == "muon":
        optimizer = Muon(**common)
    else:
        optimizer = keras.optimizers.AdamW(**common)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    optimizer.build(learner.trainable_variables)  # or a checkpoint's moments would find no place
    # `fit` would put the average in the weights' place after each epoch.
    optimizer.finalize_variable_values = lambda variables: None
    learner.compile(optimizer, _loss(model.label_smoothing))
    return learner


def _loss(smoothing: float) -> Callable[[Any, Any], Any]:
    def cross_entropy(_: Any, outputs: Any) -> Any:
        logits, labels = outputs[:, :1], outputs[:, 1:]
        return keras.losses.binary_crossentropy(labels, logits, from_logits=True, label_smoothing=smoothing)

    return cross_entropy


def prepare(learner: Any, seed: int, epoch: int, strength: float) -> None:
    """Set all random layers to states that depend on the seed and the epoch alone, and degradations to a strength."""
    for number, layer in enumerate(learner._flatten_layers()):
        generator = getattr(layer, "seed_generator", None) or getattr(layer, "generator", None)
        if generator is not None and hasattr(generator, "state"):
            generator.state.assign(np.array([seed + 1_000_003 * number, epoch], np.uint32))
        if hasattr(layer, "strength"):
            layer.strength.assign(strength)


def variables(learner: Any) -> list[Any]:
    """All that a training goes on from: weights, statistics, moments, averages, states of generators."""
    return [*learner.variables, *learner.optimizer.variables]


@contextmanager
def averaged(learner: Any, batches: Any) -> Iterator[None]:
    """For the body, the moving average of the weights in their place, where the settings ask for one.

    Statistics of batch normalisation belong to the weights they were taken with, so they are taken again, over some
    of the batches (Izmailov et al. 2018).
    """
    optimizer = learner.optimizer
    if not optimizer.use_ema:
        yield
        return
    kept = [np.array(ops.convert_to_numpy(variable)) for variable in learner.variables]
    type(optimizer).finalize_variable_values(optimizer, learner.trainable_variables)
    for variable in learner.trainable_variables:
        # JAX would let both have the same memory, and `predict` give it away.
        variable.assign(np.array(ops.convert_to_numpy(variable)))
    _settle(learner, batches)
    try:
        yield
    finally:
        for variable, value in zip(learner.variables, kept, strict=True):
            variable.assign(value)


def _settle(learner: Any, batches: Any) -> None:
    normalisations = [
        layer
        for layer in learner._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    momenta = [layer.momentum for layer in normalisations]
    for number in range(min(len(batches), _SETTLING_BATCHES) if normalisations else 0):
        for layer in normalisations:
            layer.momentum = number / (number + 1)  # the plain mean over the batches
        learner(batches[number][0], training=True)
    for layer, momentum in zip(normalisations, momenta, strict=True):
        layer.momentum = momentum


class Progress(keras.callbacks.Callback):
    """A line every ten seconds with the time that the training still needs; ends it when its loss is no number.

    Args:
        name: of the candidate.
        epochs: of the whole training.
        steps: batches in an epoch.
        first: the epoch it begins with.
        quiet: whether another process says it.
    """

    async_safe = True

    def __init__(self, name: str, epochs: int, steps: int, first: int, quiet: bool = False) -> None:
        super().__init__()
        self.name, self.epochs, self.steps, self.first, self.quiet = name, epochs, steps, first, quiet
        self.epoch = first
        self.lost: int | None = None
        self.began = self.said = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Keras' hook."""
        if not np.isfinite(logs["loss"]):
            self.lost = batch + 1 if self.lost is None else min(self.lost, batch + 1)
            self.model.stop_training = True
            return
        now = time.monotonic()
        if self.quiet or now - self.said < 10:
            return
        self.said = now
        done = (self.epoch - self.first) * self.steps + batch + 1
        left = (now - self.began) / done * ((self.epochs - self.first) * self.steps - done)
        print(
            f"{self.name}: epoch {self.epoch + 1}/{self.epochs}, step {batch + 1}/{self.steps}, "
            f"at most {left / 60:.1f} min left",
            flush=True,
        )
