"""Model against model: adversarial examples made on one, judged on every other."""

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

#: Told after each batch how many images it held, and whose they were.


@dataclass(frozen=True)
class Transfer:
    """What each of T ``targets`` makes of the examples of each of S ``sources``, on the same N images.

    ``clean`` ``(T, N)``: the target is right on the image; ``right`` ``(S, T, N)``: on the source's example of it.
    Logits that are not finite are not right.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    numbers: Tensor
    labels: Tensor
    clean: Tensor
    right: Tensor

    @property
    def accuracy(self) -> Tensor:
        """Share of all images whose example the target gets right, ``(S, T)``."""
        return self.right.double().mean(dim=2)

    def of(self, source: str, target: str) -> Tensor:
        """Which examples ``(N,)`` of ``source`` the target gets right."""
        return self.right[self.sources.index(source), self.targets.index(target)]

    def interval(self, source: str, target: str) -> Interval:
        """Wilson interval of the accuracy."""
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
    """The last iterates of PGD on ``model``, ``(N, C, H, W)`` float32 on the CPU, for other models to be shown.

    Not the first that fools it, as an evaluation keeps: those lie just behind the boundary of ``model`` and fool few
    others. One start, that of restart 0; ``numbers`` name the images' streams, 0 .. N-1 where None. A batch is a unit
    of work, named by its place. ``seen`` notes the gradients.
    """
    named = torch.arange(len(image_set)) if numbers is None else numbers
    batches = torch.arange(len(image_set)).split(work.batch_size or 32)
    found = []
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
            found.append(unit["examples"])
            if seen is not None:
                seen.add(indices, unit["blindness"])
            work.advance(len(indices), "")
    return torch.cat(found)


def transfer(
    models: Mapping[str, nn.Module],
    image_set: ImageSet,
    examples: Mapping[str, Tensor],
    threat: ThreatModel,
    *,
    numbers: Tensor | None = None,
    work: Work = PLAIN,
) -> Transfer:
    """Judge every source's ``examples`` ``(N, C, H, W)`` of ``image_set``, on the CPU, on every one of ``models``.

    A target's look at a batch is a unit of work.
    Raises :class:`GradscopeError` for a model that does not take these images or has other classes, and for examples
    that are of another shape, not finite, or outside ball or box by more than rounding.
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
    shape, wanted = tuple(examples.shape), tuple(image_set.images.shape)
    if shape != wanted:
        raise GradscopeError(f"examples: those of {source} are {shape}, the images are {wanted}")
    if not examples.isfinite().all():
        raise GradscopeError(f"examples: those of {source} hold values that are not finite")
    if threat.box and (float(examples.min()) < 0 or float(examples.max()) > 1):
        raise GradscopeError(f"examples: those of {source} leave [0, 1]; make them with box on")
    for indices, images, _ in image_set.batches(1024, "cpu"):
        farthest = float(threat.distance(examples[indices], images).max())
        if farthest > threat.epsilon * (1 + 1e-4) + 1e-6:
            radius = f"the radius is {threat.epsilon:g}"
            raise GradscopeError(f"examples: those of {source} are up to {farthest:g} from their images, {radius}")
