"""A model to be examined, whoever trained it, with the names its results carry."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradscope.config import Data
from gradscope.data.image_set import ImageSet
from gradscope.errors import GradscopeError
from gradscope.models import checkpoint as checkpoints
from gradscope.models.checkpoint import Checkpoint
from gradscope.models.foreign import load_foreign
from gradscope.models.inspection import check_differentiable, check_fits, grey, returning_logits
from gradscope.models.references import ModelRef, check_references, weights_in_order


@dataclass(frozen=True)
class Foreign:
    """What the command says about models trained elsewhere; ``weights`` has a file for each, in order, or none."""

    weights: tuple[Path, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    trust_code: bool = False
    ignore_class_names: bool = False


@dataclass(frozen=True)
class ModelSource:
    """A model as it is named: its label in the results and, where it is ours, its content."""

    named: ModelRef
    label: str
    checkpoint: Checkpoint | None
    weights: Path | None

    @property
    def text(self) -> str:
        """What the command says."""
        return self.named.text

    @property
    def data(self) -> Data | None:
        """The data set our checkpoint was trained on; None for a foreign model."""
        if self.checkpoint is None:
            return None
        if "data" not in self.checkpoint.config:
            raise GradscopeError(f"model: {self.text} is damaged: its configuration does not name its data")
        return Data.parse(self.checkpoint.config["data"])


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, in eval mode, that takes [0, 1] images and fits the data it will be examined on."""

    label: str
    model: nn.Module
    mode: str
    architecture: str
    seed: int | None

    def identity(self, dataset: str, attack: str) -> dict[str, Any]:
        """The columns that say whose result a row is."""
        return {
            "checkpoint": self.label,
            "mode": self.mode,
            "dataset": dataset,
            "arch": self.architecture,
            "seed": self.seed,
            "attack": attack,
        }


def read_references(texts: Sequence[str], foreign: Foreign) -> list[ModelSource]:
    """What each CKPT of a command names; our checkpoints are read. Labels are unique."""
    named = check_references(
        texts, weights=foreign.weights, mean=foreign.mean, std=foreign.std, trust_code=foreign.trust_code
    )
    weights = weights_in_order(named, foreign.weights)
    return [
        ModelSource(
            one,
            label,
            None if one.is_foreign else checkpoints.load(Path(one.text), trust_code=foreign.trust_code),
            file,
        )
        for one, label, file in zip(named, _labels(named, weights), weights, strict=True)
    ]


def _labels(named: Sequence[ModelRef], weights: Sequence[Path | None]) -> list[str]:
    """The file's stem; the whole path where two share one. A foreign model's text, with its weights where needed."""
    short = [one.text if one.is_foreign else one.short_name for one in named]
    full = [one.text if file is None else f"{one.text}@{file}" for one, file in zip(named, weights, strict=True)]
    return [whole if short.count(name) > 1 else name for name, whole in zip(short, full, strict=True)]


def load_model(
    reference: ModelSource,
    images: ImageSet,
    foreign: Foreign,
    device: torch.device,
    *,
    differentiable: bool = True,
    argument: str = "model",
) -> LoadedModel:
    """Build the model and make sure that it fits ``images``; every misfit raises :class:`GradscopeError`.

    So does a model whose logits are cut off from the image or not finite, where it must be ``differentiable``.
    ``argument`` is what names it.
    """
    ours = reference.checkpoint
    if ours is not None:
        if ours.spec.channels != images.channels:
            channels = "1 channel" if ours.spec.channels == 1 else f"{ours.spec.channels} channels"
            raise GradscopeError(
                f"{argument}: {reference.label} takes images of {channels}, {images.name} has {images.channels}"
            )
        _require_classes(f"{argument}: {reference.label}", ours.classes, images, foreign.ignore_class_names)
        seed = ours.config.get("seed")
        subject = LoadedModel(reference.label, ours.build(), ours.mode, ours.spec.architecture, seed)
    else:
        model = load_foreign(
            reference.named,
            weights=reference.weights,
            classes=len(images.classes),
            channels=images.channels,
            size=(images.height, images.width),
            mean=foreign.mean,
            std=foreign.std,
            trust_code=foreign.trust_code,
        )
        subject = LoadedModel(reference.label, model, "foreign", reference.text.partition(":")[2], None)
    name = f"{argument}: {reference.label}"
    model = returning_logits(subject.model.to(device), grey(images, device), name)
    check_fits(model, images, name=name, device=device, finite=differentiable)
    if differentiable:
        check_differentiable(model, images, name=name, device=device)
    return replace(subject, model=model)


def _require_classes(name: str, trained: tuple[str, ...], images: ImageSet, ignore_names: bool) -> None:
    """Class names in the order of the logits: where they differ, every accuracy would be of other classes."""
    if len(trained) != len(images.classes):
        raise GradscopeError(f"{name} has {len(trained)} classes, {images.name} has {len(images.classes)}")
    for index, (ours, theirs) in enumerate(zip(trained, images.classes, strict=True)):
        if ours != theirs and not ignore_names:
            raise GradscopeError(
                f"{name} has {ours!r} as class {index}, {images.name} has {theirs!r}; "
                "pass `ignore_class_names` if they mean the same"
            )
