"""Pictures of a few of the images that a verdict rests on: what they were, and what an attack made of them."""

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

#: Pictures of one check, of all, and where no check accuses.
EACH, MOST, OTHERWISE = 4, 12, 6


@dataclass(frozen=True)
class ExampleImage:
    """An image ``(C, H, W)`` of ``check`` (its id; "" where none accuses) before and after ``attack``.

    ``index`` is its place in its set; ``clean_predicted`` and ``adversarial_predicted`` are the model's classes.
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
    """A few images of every check that accuses; where none does, those that fell last, or that stand.

    None of a random model: a pass over an image shows nothing that the next one has to show.

    The attacks are made anew on these images alone, with the streams of ``audit``: they lead where they led, to
    rounding and to what the model itself draws. The other arguments are those of
    :func:`gradscope.auditing.verdict.examine`.
    """
    evidence = audit.evidence
    found: list[ExampleImage] = []
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
            # Names of the pictures' own: the audit made the same units without keeping images.
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
        found += [ExampleImage(check, attack, *row) for row in zip(*columns, strict=True)]
    return found


def _chosen(audit: Audit) -> list[tuple[str, str, ThreatModel, Tensor]]:
    """Check, attack, ball and places ``(M,)`` of the images to show."""
    evidence, main = audit.evidence, audit.evidence.main
    if evidence.wanders:
        return []
    place_of = {number: place for place, number in enumerate(evidence.numbers.tolist())}
    accusing = [made for made in audit.checks if made.fired and made.accuses and made.attack and made.images]
    run = list(main.attacks)
    chosen = [
        (made.id, made.attack, made.threat or evidence.threat, [place_of[number] for number in made.images[:EACH]])
        for made in accusing[: MOST // EACH]
    ]
    if not chosen:
        felled = main.felled_by()
        for attack in reversed(run):
            room = OTHERWISE - sum(len(places) for _, _, _, places in chosen)
            places = [place for place, name in enumerate(felled) if name == attack][:room]
            chosen += [("", attack, evidence.threat, places)] if places else []
    if not chosen and run:
        places = main.standing().nonzero().squeeze(1).tolist()[:OTHERWISE]
        chosen = [("", run[-1], evidence.threat, places)] if places else []
    return [(check, attack, threat, torch.tensor(places)) for check, attack, threat, places in chosen]
