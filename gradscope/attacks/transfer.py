"""Transfer between models: adversarial examples made on one model, judged on all models."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from gradscope.attacks.pgd import Blindness, Streams, pgd, prepared
from gradscope.attacks.threat import ThreatModel
from gradscope.config import PGD
from gradscope.data.image_set import ImageSet
from gradscope.distributed.units import PLAIN, Values, Work
from gradscope.errors import GradscopeError
from gradscope.functional import fooled
from gradscope.models.inspection import check_fits, measuring
from gradscope.results.stats import Interval, wilson_interval
from gradscope.seeding import seeded


@dataclass(frozen=True)
class Transfer:
    """Correctness of T ``targets`` on the adversarial examples of S ``sources``, for the same N images.

    ``clean`` ``(T, N)``: the target is right on the clean image. ``right`` ``(S, T, N)``: the target is right on the
    source's example of the image. Logits that are not finite count as wrong.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    numbers: Tensor
    labels: Tensor
    clean: Tensor
    right: Tensor

    @property
    def accuracy(self) -> Tensor:
        """Share of all images whose example the target classifies correctly, ``(S, T)``."""
        return self.right.double().mean(dim=2)

    def of(self, source: str, target: str) -> Tensor:
        """Mark the examples ``(N,)`` of ``source`` that ``target`` classifies correctly."""
        return self.right[self.sources.index(source), self.targets.index(target)]

    def interval(self, source: str, target: str) -> Interval:
        """Compute the Wilson interval of the accuracy."""
        right = self.of(source, target)
        return wilson_interval(int(right.sum()), len(right))


def make_examples(
    model: nn.Module,
    image_set: ImageSet,
    settings: PGD,
    *,
    numbers: Tensor | None = None,
    work: Work = PLAIN,
    seen: Blindness | None = None,
) -> Tensor:
    """Make adversarial examples for other models: the last iterates of PGD on ``model``, ``(N, C, H, W)``.

    The result is float32 on the CPU. An evaluation keeps the first iterate that fools the model instead; that lies just
    beyond the boundary of ``model`` and fools few other models. There is one start, that of restart 0. ``numbers`` name
    the images' random streams (0 .. N-1 if None). Each batch is a unit of work, named by its position. ``seen`` records
    the gradients.
    """
    named = torch.arange(len(image_set)) if numbers is None else numbers
    batches = torch.arange(len(image_set)).split(work.batch_size or 32)
    examples = []
    with prepared(model, settings) as attacked:

        def reach(indices: Tensor) -> Values:
            images, labels = image_set.batch(indices, work.device)
            images = images.double() if settings.precision == "float64" else images
            part = named[indices]
            here = Blindness(len(part))
            with seeded(work.seed, "examples", *part.tolist()):
                reached = pgd(attacked, images, labels, settings, streams=Streams(work.seed, part), seen=here)
            assert here.worst is not None
            return {"examples": reached.points.float(), "blindness": here.worst}

        units = [(f"examples-{int(indices[0]):06d}", partial(reach, indices)) for indices in batches]
        for indices, unit in zip(batches, work.each(units), strict=True):
            examples.append(unit["examples"])
            if seen is not None:
                seen.add(indices, unit["blindness"])
            work.advance(len(indices), "")
    return torch.cat(examples)


def transfer(
    models: Mapping[str, nn.Module],
    image_set: ImageSet,
    examples: Mapping[str, Tensor],
    threat: ThreatModel,
    *,
    numbers: Tensor | None = None,
    work: Work = PLAIN,
) -> Transfer:
    """Judge the ``examples`` ``(N, C, H, W)`` of every source, kept on the CPU, on every one of ``models``.

    Each target and batch is a unit of work. Raises :class:`GradscopeError` for a model that does not accept these
    images or has other classes, and for examples that have another shape, are not finite, or lie outside ball or box by
    more than rounding.
    """
    numbers = torch.arange(len(image_set)) if numbers is None else numbers
    for source, example in examples.items():
        _check_examples(source, example, image_set, threat)
    for target, model in models.items():
        check_fits(model, image_set, name=f"model: {target}", device=work.device)
    batches = torch.arange(len(image_set)).split(work.batch_size or 256)
    named = numbers

    def look(model: nn.Module, indices: Tensor) -> Values:
        images, labels = image_set.batch(indices, work.device)
        shown = [example[indices].to(images) for example in examples.values()]
        with measuring(model), torch.no_grad(), seeded(work.seed, "transfer", *named[indices].tolist()):
            own = ~fooled(model(images), labels)
            return {"clean": own, "right": torch.stack([~fooled(model(points), labels) for points in shown])}

    clean, right = [], []
    for target, model in models.items():
        units = [(f"{target}-{int(indices[0]):06d}", partial(look, model, indices)) for indices in batches]
        judged = []
        for indices, unit in zip(batches, work.each(units), strict=True):
            judged.append(unit)
            work.advance(len(indices), target)
        clean.append(torch.cat([unit["clean"] for unit in judged]))
        right.append(torch.cat([unit["right"] for unit in judged], dim=1))
    labels = image_set.labels.cpu()
    return Transfer(tuple(examples), tuple(models), numbers, labels, torch.stack(clean), torch.stack(right, dim=1))


def _check_examples(source: str, examples: Tensor, image_set: ImageSet, threat: ThreatModel) -> None:
    shape, expected = tuple(examples.shape), tuple(image_set.images.shape)
    if shape != expected:
        raise GradscopeError(f"examples: those of {source} must have the shape of the images, {expected}, got {shape}")
    if not examples.isfinite().all():
        raise GradscopeError(f"examples: those of {source} must be finite, got NaN or infinity")
    if threat.box and (float(examples.min()) < 0 or float(examples.max()) > 1):
        raise GradscopeError(f"examples: those of {source} must lie in [0, 1]; make them with box on")
    for indices, images, _ in image_set.batches(1024, "cpu"):
        farthest = float(threat.distance(examples[indices], images).max())
        if farthest > threat.epsilon * (1 + 1e-4) + 1e-6:
            raise GradscopeError(
                f"examples: those of {source} must lie within {threat.epsilon:g} of their images, got up to "
                f"{farthest:g}"
            )
