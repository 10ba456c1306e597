"""A checkpoint that is attacked, the images it is seen on, and other models whose examples are tried on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradscope.attacks.threat import ThreatModel
from gradscope.attacks.transfer import make_examples
from gradscope.config import PGD, Budget, Data
from gradscope.data.image_set import Splits
from gradscope.errors import GradscopeError
from gradscope.models.subject import Foreign, Reference, load_subject, read_references
from gradscope.progress import Advance
from gradscope.seeding import derive
from gradscope.sharing import Each, prefixed
from gradscope.study.inputs import Chosen, Request, choose, describe, read_data


@dataclass(frozen=True)
class Examined:
    """A checkpoint, its images, and its surrogates: the other models that are attacked in its place."""

    reference: Reference
    chosen: Chosen
    surrogates: tuple[Reference, ...]

    def tile(self, label: str, threat: ThreatModel) -> str:
        """How the names of pieces of work begin: otherwise for another model, set of images or ball."""
        return f"{derive(0, label, self.chosen.images.fingerprint, threat.norm, threat.epsilon):016x}"


def read_examined(
    texts: Sequence[str],
    surrogates: Sequence[str],
    request: Request,
    samples: int | None,
    default: int,
    foreign: Foreign,
    device: torch.device,
) -> list[Examined]:
    """Every checkpoint with its images and surrogates, each loaded once to see that they fit.

    Checkpoints and surrogates may share names: no model is its own surrogate. ``samples`` images are chosen, where None
    ``default`` or all. Raises :class:`GradscopeError` where a model does not fit, or a surrogate has no gradient.
    """
    references = read_references(with_surrogates(texts, surrogates), foreign)
    named = {reference.text: reference for reference in references}
    loaded: dict[Data, Splits] = {}
    examined = []
    for reference in references[: len(texts)]:
        test = read_data(reference, request, loaded).test
        chosen = choose(test, samples, default, request.seed, "--samples")
        load_subject(reference, chosen.images, foreign, device, differentiable=False)
        mine = tuple(named[text] for text in dict.fromkeys(surrogates) if text != reference.text)
        for surrogate in mine:
            _check_surrogate(surrogate, chosen, foreign, device)
        examined.append(Examined(reference, chosen, mine))
    return examined


def require_one_shape(examined: Sequence[Examined], argument: str) -> None:
    """Images that go into one file must be alike in shape; else a :class:`GradscopeError` that names ``argument``."""
    shapes = {tuple(one.chosen.images.images.shape[1:]) for one in examined}
    if len(shapes) > 1:
        raise GradscopeError(f"{argument}: images of one shape are allowed, got {', '.join(map(str, sorted(shapes)))}")


def with_surrogates(texts: Sequence[str], surrogates: Sequence[str]) -> list[str]:
    """The checkpoints, then the surrogates that are none of them."""
    return [*texts, *(text for text in dict.fromkeys(surrogates) if text not in texts)]


def _check_surrogate(surrogate: Reference, chosen: Chosen, foreign: Foreign, device: torch.device) -> None:
    try:
        load_subject(surrogate, chosen.images, foreign, device)
    except GradscopeError as error:
        raise GradscopeError(f"--surrogate: {str(error).removeprefix('CKPT: ')}") from None


def surrogate_examples(
    examined: Examined,
    threat: ThreatModel,
    budget: Budget,
    seed: int,
    foreign: Foreign,
    device: torch.device,
    batch_size: int,
    each: Each,
    advance: Advance,
) -> list[Tensor]:
    """Exact PGD's last iterates ``(N, C, H, W)`` on each surrogate, inside ``threat`` and ``budget``.

    A batch of them is a unit of work of ``each``; checkpoints that are seen on the same images share them.
    """
    step_size = 2.5 * threat.epsilon / budget.steps if budget.step_size is None else budget.step_size
    settings = PGD(norm=threat.norm, epsilon=threat.epsilon, steps=budget.steps, step_size=step_size, box=threat.box)
    images = examined.chosen.images

    def examples_of(reference: Reference) -> Tensor:
        return make_examples(
            load_subject(reference, images, foreign, device).model,
            images,
            settings,
            numbers=examined.chosen.numbers,
            seed=seed,
            device=device,
            batch_size=batch_size,
            each=prefixed(each, examined.tile(reference.label, threat)),
            advanced=lambda done, note: advance(done, f"examples of {reference.label}"),
        )

    return [examples_of(reference) for reference in examined.surrogates]


def describe_surrogates(examined: Sequence[Examined]) -> list[dict[str, Any]]:
    """Each surrogate once, as the manifest names it, with the images of the first checkpoint it stands in for."""
    first: dict[str, dict[str, Any]] = {}
    for one in examined:
        for reference in one.surrogates:
            first.setdefault(reference.text, describe(reference, one.chosen))
    return list(first.values())


def sources(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the models of a manifest are known by: the file's SHA-256, or the foreign model's name."""
    return [entry["sha256"] or entry["source"] for entry in entries]
