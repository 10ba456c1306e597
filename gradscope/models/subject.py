"""A model to be examined, whoever trained it, with the names its results carry."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradscope.config import Data
from gradscope.data.image_set import ImageSet
from gradscope.errors import GradscopeError
from gradscope.models import checkpoint as checkpoints
from gradscope.models.checkpoint import Checkpoint
from gradscope.models.foreign import is_foreign, load_foreign
from gradscope.models.inspection import check_differentiable, check_fits


@dataclass(frozen=True)
class Foreign:
    """What the command says about models trained elsewhere; ``weights`` has a file for each, in order, or none."""

    weights: tuple[Path, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    trust_code: bool = False
    ignore_class_names: bool = False


@dataclass(frozen=True)
class Reference:
    """A checkpoint as the command names it: its label in the results and, where it is ours, its content."""

    text: str
    label: str
    checkpoint: Checkpoint | None
    weights: Path | None

    @property
    def data(self) -> Data | None:
        """The data set our checkpoint was trained on; None for a foreign model."""
        return None if self.checkpoint is None else Data.parse(self.checkpoint.config["data"])


@dataclass(frozen=True)
class Subject:
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


def read_references(texts: Sequence[str], foreign: Foreign) -> list[Reference]:
    """What each CKPT of a command names; our checkpoints are read. Labels are unique."""
    outsiders = sum(map(is_foreign, texts))
    if foreign.weights and len(foreign.weights) != outsiders:
        raise GradscopeError(
            f"--weights: one file for each foreign model is allowed, in order ({outsiders}), got {len(foreign.weights)}"
        )
    if not outsiders and (foreign.mean or foreign.std):
        raise GradscopeError("--mean, --std: foreign models alone are allowed them; our checkpoints have their own")
    files = iter(foreign.weights)
    weights = [next(files, None) if is_foreign(text) else None for text in texts]
    _require_distinct(texts, weights)
    return [
        Reference(text, label, None if is_foreign(text) else checkpoints.load(Path(text)), file)
        for text, label, file in zip(texts, _labels(texts, weights), weights, strict=True)
    ]


def _require_distinct(texts: Sequence[str], weights: Sequence[Path | None]) -> None:
    """The same model twice, however it is written, raises :class:`GradscopeError`."""
    seen = set()
    for text, file in zip(texts, weights, strict=True):
        model = (text, file and file.resolve()) if is_foreign(text) else Path(text).resolve()
        if model in seen:
            raise GradscopeError(f"CKPT: each checkpoint is allowed once, got {text!r} again")
        seen.add(model)


def _labels(texts: Sequence[str], weights: Sequence[Path | None]) -> list[str]:
    """The file's stem; the whole path where two share one. A foreign model's text, with its weights where needed."""
    short = [text if is_foreign(text) else Path(text).stem for text in texts]
    full = [text if file is None else f"{text}@{file}" for text, file in zip(texts, weights, strict=True)]
    return [whole if short.count(name) > 1 else name for name, whole in zip(short, full, strict=True)]


def load_subject(
    reference: Reference, images: ImageSet, foreign: Foreign, device: torch.device, *, differentiable: bool = True
) -> Subject:
    """Build the model and make sure that it fits ``images``; every misfit raises :class:`GradscopeError`.

    So does a model whose logits are cut off from the image or not finite, where it must be ``differentiable``.
    """
    ours = reference.checkpoint
    if ours is not None:
        if ours.spec.channels != images.channels:
            raise GradscopeError(
                f"CKPT: {reference.label} takes images of {ours.spec.channels} channel(s), "
                f"{images.name} has {images.channels}"
            )
        _require_classes(reference.label, ours.classes, images, foreign.ignore_class_names)
        model: nn.Module = ours.build()
        seed = ours.config.get("seed")
        subject = Subject(reference.label, model, ours.mode, ours.spec.architecture, seed)
    else:
        model = load_foreign(
            reference.text,
            weights=reference.weights,
            classes=len(images.classes),
            channels=images.channels,
            image_size=images.image_size,
            mean=foreign.mean,
            std=foreign.std,
            trust_code=foreign.trust_code,
        )
        subject = Subject(reference.label, model, "foreign", reference.text.partition(":")[2], None)
    model.to(device)
    check_fits(
        model,
        channels=images.channels,
        image_size=images.image_size,
        classes=len(images.classes),
        name=reference.label,
        device=device,
        finite=differentiable,
    )
    if differentiable:
        check_differentiable(
            model, channels=images.channels, image_size=images.image_size, name=reference.label, device=device
        )
    return subject


def _require_classes(label: str, trained: tuple[str, ...], images: ImageSet, ignore_names: bool) -> None:
    """Class names in the order of the logits: where they differ, every accuracy would be of other classes."""
    if len(trained) != len(images.classes):
        raise GradscopeError(f"CKPT: {label} has {len(trained)} classes, {images.name} has {len(images.classes)}")
    for index, (ours, theirs) in enumerate(zip(trained, images.classes, strict=True)):
        if ours != theirs and not ignore_names:
            raise GradscopeError(
                f"CKPT: class {index} of {label} is {ours!r}, of {images.name} {theirs!r}; "
                "pass --ignore-class-names if they mean the same"
            )
