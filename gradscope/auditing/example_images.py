"""Example images for a verdict: a few images before and after an attack."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gradscope.attacks.evaluation import evaluate
from gradscope.attacks.threat import ThreatModel
from gradscope.auditing.verdict import Audit
from gradscope.data.image_set import ImageSet
from gradscope.distributed.units import PLAIN, Work
from gradscope.losses import Loss
from gradscope.models.inspection import measuring
from gradscope.seeding import seeded

#: Number of pictures per check, in all, and if no check accuses.
EACH, MOST, OTHERWISE = 4, 12, 6


@dataclass(frozen=True)
class ExampleImage:
    """An image ``(C, H, W)`` before and after ``attack``, as an example for ``check`` (an id; "" if none accuses).

    ``index`` is its index in its set; ``clean_predicted`` and ``adversarial_predicted`` are the model's predictions.
    """

    check: str
    attack: str
    index: int
    label: int
    clean: Tensor
    adversarial: Tensor
    clean_predicted: int
    adversarial_predicted: int


def example_images(
    audit: Audit,
    model: nn.Module,
    image_set: ImageSet,
    *,
    surrogate_examples: Sequence[Tensor] = (),
    loss: Loss | None = None,
    work: Work,
) -> list[ExampleImage]:
    """Make example images: a few for every check that accuses, else those fooled last, else those never fooled.

    A random model gets none, because the next pass over an image may show something else. The attacks run again on
    these images alone, with the random streams of ``audit``, so they reach the same points up to rounding. The other
    arguments are those of :func:`gradscope.auditing.verdict.examine`.
    """
    evidence = audit.evidence
    pictures: list[ExampleImage] = []
    for check, attack, threat, places in _chosen(audit):
        outcome = evaluate(
            model,
            image_set.subset(places),
            [attack],
            threat,
            evidence.budget.attacks,
            numbers=evidence.numbers[places],
            examples=[example[places] for example in surrogate_examples],
            keep_images=True,
            loss=loss,
            # The units need other names, because the audit made the same units without keeping images.
            work=replace(work.prefixed(f"exhibit-{check}"), batch_size=None, advance=PLAIN.advance),
        )
        points = outcome.attacks[attack].adversarial
        if points is None:
            continue
        shown = places[outcome.attacks[attack].attacked]
        images, labels = image_set.batch(shown, work.device)
        with measuring(model), torch.no_grad(), seeded(work.seed, "exhibits", *evidence.numbers[shown].tolist()):
            before, after = (model(batch).argmax(dim=1).tolist() for batch in (images, points.to(images)))
        columns = (evidence.numbers[shown].tolist(), labels.tolist(), images.cpu(), points, before, after)
        pictures += [ExampleImage(check, attack, *row) for row in zip(*columns, strict=True)]
    return pictures


def _chosen(audit: Audit) -> list[tuple[str, str, ThreatModel, Tensor]]:
    """Choose the images to show: check, attack, threat model and indices ``(M,)``."""
    evidence, main = audit.evidence, audit.evidence.main
    if evidence.wanders:
        return []
    place_of = {number: place for place, number in enumerate(evidence.numbers.tolist())}
    accusing = [
        result for result in audit.checks if result.fired and result.accuses and result.attack and result.images
    ]
    run = list(main.attacks)
    chosen = [
        (
            result.id,
            result.attack,
            result.threat or evidence.threat,
            [place_of[number] for number in result.images[:EACH]],
        )
        for result in accusing[: MOST // EACH]
    ]
    if not chosen:
        first_attack = main.felled_by()
        for attack in reversed(run):
            room = OTHERWISE - sum(len(places) for _, _, _, places in chosen)
            places = [place for place, name in enumerate(first_attack) if name == attack][:room]
            chosen += [("", attack, evidence.threat, places)] if places else []
    if not chosen and run:
        places = main.standing().nonzero().squeeze(1).tolist()[:OTHERWISE]
        chosen = [("", run[-1], evidence.threat, places)] if places else []
    return [(check, attack, threat, torch.tensor(places)) for check, attack, threat, places in chosen]
