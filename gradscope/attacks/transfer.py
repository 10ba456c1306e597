"""Model against model: adversarial examples made on one, judged on every other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradscope.attacks.pgd import Streams, pgd, prepared, threat_model
from gradscope.attacks.threat import ThreatModel
from gradscope.attacks.victims import fooled
from gradscope.config import PGD
from gradscope.data.image_set import ImageSet
from gradscope.errors import GradscopeError
from gradscope.models.inspection import check_fits, evaluating
from gradscope.results.stats import Interval, wilson_interval
from gradscope.seeding import seeded

#: Told after each batch how many images it held, and whose they were.
Advanced = Callable[[int, str], None]


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
    seed: int = 0,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
    advanced: Advanced = lambda images, note: None,
) -> Tensor:
    """The last iterates of PGD on ``model``, ``(N, C, H, W)`` float32 on the CPU, for other models to be shown.

    Not the first that fools it, as the battery keeps: those lie just behind the boundary of ``model`` and fool few
    others. One start, that of restart 0; ``numbers`` name the images' streams, 0 .. N-1 where None.
    """
    numbers = torch.arange(len(image_set)) if numbers is None else numbers
    made = []
    with prepared(model, settings) as attacked:
        for indices, images, labels in image_set.batches(batch_size, device):
            images = images.double() if settings.precision == "float64" else images
            part = numbers[indices]
            start = None
            if settings.start != "none":
                start = threat_model(settings).random_start(images, settings.start, seed, ("start", 0), part)
            noise = Streams(seed, ("smoothing", 0), part)
            with seeded(seed, "examples", *part.tolist()):
                made.append(pgd(attacked, images, labels, settings, start=start, noise=noise).float().cpu())
            advanced(len(indices), "")
    return torch.cat(made)


def transfer(
    models: Mapping[str, nn.Module],
    image_set: ImageSet,
    examples: Mapping[str, Tensor],
    threat: ThreatModel,
    *,
    numbers: Tensor | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    advanced: Advanced = lambda images, note: None,
) -> Transfer:
    """Judge every source's ``examples`` ``(N, C, H, W)`` of ``image_set``, on the CPU, on every one of ``models``.

    Raises :class:`GradscopeError` for a model that does not take these images or has other classes, and for examples
    that are of another shape, not finite, or outside ball or box by more than rounding.
    """
    device = torch.device(device)
    numbers = torch.arange(len(image_set)) if numbers is None else numbers
    for source, example in examples.items():
        _check_examples(source, example, image_set, threat)
    for target, model in models.items():
        check_fits(
            model,
            channels=image_set.channels,
            image_size=image_set.image_size,
            classes=len(image_set.classes),
            name=target,
            device=device,
        )
    clean, right = [], []
    for target, model in models.items():
        own, others = [], []
        with evaluating(model), torch.no_grad():
            for indices, images, labels in image_set.batches(batch_size, device):
                with seeded(seed, "transfer", *numbers[indices].tolist()):
                    own.append(~fooled(model(images), labels))
                    shown = [example[indices].to(images) for example in examples.values()]
                    others.append(torch.stack([~fooled(model(points), labels) for points in shown]))
                advanced(len(indices), target)
        clean.append(torch.cat(own))
        right.append(torch.cat(others, dim=1))
    labels = image_set.labels.cpu()
    judged = torch.stack(right, dim=1).cpu()
    return Transfer(tuple(examples), tuple(models), numbers, labels, torch.stack(clean).cpu(), judged)


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
