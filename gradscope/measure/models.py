"""Load models to attack, each with surrogates: other models whose adversarial examples are tried on it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from gradscope.attacks.pgd import settings_inside
from gradscope.attacks.threat import ThreatModel
from gradscope.attacks.transfer import make_examples
from gradscope.config import Budget
from gradscope.distributed.units import Work
from gradscope.errors import GradscopeError
from gradscope.measure.inputs import Chosen, Entry, Inputs, describe
from gradscope.models.loading import ModelSource
from gradscope.seeding import derive


def read_entries(inputs: Inputs, surrogates: Sequence[str], samples: int | None) -> list[Entry]:
    """Load every model of the request with its images and surrogates, to check that they fit.

    A model that is also named as surrogate is not its own surrogate. Raises :class:`GradscopeError` if a model does not
    fit, or a surrogate has no gradient.
    """
    references = inputs.references(surrogates)
    named = {reference.text: reference for reference in references}
    entries = []
    for reference in references[: len(inputs.request.models)]:
        chosen = inputs.choose(inputs.splits(reference).test, samples, "samples")
        inputs.attacked(reference, chosen.images)
        inputs.loss(chosen.images)
        own = tuple(named[text] for text in dict.fromkeys(surrogates) if text != reference.text)
        for surrogate in own:
            _check_surrogate(surrogate, chosen, inputs)
        entries.append(Entry(reference, chosen, own))
    return entries


def require_one_shape(entries: Sequence[Entry], argument: str) -> None:
    """Raise :class:`GradscopeError` that names ``argument`` unless all images, which share one file, have one shape."""
    shapes = {tuple(entry.chosen.images.images.shape[1:]) for entry in entries}
    if len(shapes) > 1:
        raise GradscopeError(
            f"{argument} must have images of one shape, got {', '.join(map(str, sorted(shapes)))}", argument
        )


def _check_surrogate(surrogate: ModelSource, chosen: Chosen, inputs: Inputs) -> None:
    inputs.load(surrogate, chosen.images, argument="surrogate")


def unit_prefix(entry: Entry, label: str, threat: ThreatModel) -> str:
    """Return the prefix of the names of units of work; it differs for another model, set of images or ball."""
    return f"{derive(0, label, entry.chosen.images.fingerprint, threat.norm, threat.epsilon):016x}"


def surrogate_examples(
    entry: Entry,
    inputs: Inputs,
    threat: ThreatModel,
    budget: Budget,
    work: Work,
) -> list[Tensor]:
    """Make adversarial examples ``(N, C, H, W)`` on each surrogate: exact PGD's last iterates in ``threat``.

    A batch is a unit of ``work``; models that are attacked on the same images share them. The steps come from
    ``budget``.
    """
    settings = settings_inside(threat, budget)
    images = entry.chosen.images

    def examples_of(reference: ModelSource) -> Tensor:
        return make_examples(
            inputs.load(reference, images).model,
            images,
            settings,
            numbers=entry.chosen.numbers,
            work=replace(
                work.prefixed(unit_prefix(entry, reference.label, threat)),
                advance=lambda done, note: work.advance(done, f"examples of {reference.label}"),
            ),
        )

    return [examples_of(reference) for reference in entry.surrogates]


def describe_surrogates(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Describe each surrogate once for the manifest, with the images of the first model it is tried on."""
    first: dict[str, dict[str, Any]] = {}
    for entry in entries:
        for reference in entry.surrogates:
            first.setdefault(reference.text, describe(Entry(reference, entry.chosen)))
    return list(first.values())
