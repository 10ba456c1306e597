"""PGD that keeps its success: an image is fooled if any iterate of any start is."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from gradscope.attacks.pgd import Iterate, advance, look, prepared, threat_model
from gradscope.attacks.victims import Victims, fooled
from gradscope.config import PGD

#: The point of each victim where a restart begins.
Begin = Callable[[Victims, int], Tensor]


def climb(victims: Victims, settings: PGD, begin: Begin | None = None) -> Tensor:
    """Each image's first iterate, over all restarts, that fools the model; else the last one of the last.

    So there is no silent success, an iterate that fools the model and is walked past (Pintor et al. 2022). An image
    that has fallen is not attacked further, unless the batch is part of the attack (``reduction`` "mean"). Where the
    victims must stay in a box that ``settings`` ignores, the iterates are cut to it before they are judged. A
    coordinate whose slope is not a number counts as flat. ``begin`` takes the place of the start that
    ``settings`` names, whose streams are those of :func:`gradscope.probes.trajectory.measure_trajectory`.
    """
    points = victims.images.clone()
    standing = torch.ones(len(victims), dtype=torch.bool, device=points.device)
    everyone = torch.arange(len(victims), device=points.device)
    with prepared(victims.model, settings) as model:
        for restart in range(settings.restarts):
            rows = everyone if settings.reduction == "mean" else everyone[standing]
            attacked = victims.only(rows)
            start = begin(attacked, restart) if begin else _random_start(attacked, settings, restart)
            reached, wrong = _from_one_start(model, attacked, settings, restart, start)
            new = standing[rows]
            points[rows[new]] = reached[new]
            standing[rows] &= ~wrong
            if not standing.any():
                break
    return points


def _random_start(victims: Victims, settings: PGD, restart: int) -> Tensor:
    if settings.start == "none":
        return victims.images
    names = ("start", restart)
    return threat_model(settings).random_start(victims.images, settings.start, victims.seed, names, victims.numbers)


def _from_one_start(
    model: nn.Module, victims: Victims, settings: PGD, restart: int, start: Tensor
) -> tuple[Tensor, Tensor]:
    """The points ``(N, C, H, W)`` reached from ``start``, and which of them fooled ``model`` ``(N,)``."""
    double = settings.precision == "float64"
    victims = replace(victims, images=victims.images.double()) if double else victims
    points = start.clone()
    wrong = torch.zeros(len(victims), dtype=torch.bool, device=points.device)
    rows = torch.arange(len(victims), device=points.device)
    climbing, current = victims, start.double() if double else start
    for step in range(settings.steps + 1):
        noise = climbing.streams("smoothing", restart)
        gradient = step < settings.steps
        iterate = look(model, current, climbing.labels, settings, step, gradient=gradient, noise=noise)
        judged, here = _judged(model, iterate, climbing, settings)
        new = ~wrong[rows]
        points[rows[new]] = judged[new].to(points)
        wrong[rows] |= here
        if wrong.all() or not gradient:
            break
        if settings.reduction == "sum" and here.any():
            stay = (~here).nonzero().squeeze(1)
            rows, climbing, iterate = rows[stay], climbing.only(stay), _only(iterate, stay)
        assert iterate.gradient is not None
        known = replace(iterate, gradient=iterate.gradient.nan_to_num(0.0))
        current = advance(known, climbing.images, settings)
    return points, wrong


def _judged(model: nn.Module, iterate: Iterate, victims: Victims, settings: PGD) -> tuple[Tensor, Tensor]:
    """The iterate as far as the threat model lets it go, and which images it fools ``(N,)``."""
    if settings.box or not victims.threat.box:
        return iterate.images, fooled(iterate.logits, victims.labels)
    cut = iterate.images.clamp(0, 1)
    return cut, replace(victims, model=model).fooled_at(cut)


def _only(iterate: Iterate, rows: Tensor) -> Iterate:
    assert iterate.gradient is not None
    return replace(
        iterate,
        images=iterate.images[rows],
        logits=iterate.logits[rows],
        loss=iterate.loss[rows],
        gradient=iterate.gradient[rows],
    )
