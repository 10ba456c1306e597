"""Attacks that use logits only: Square and random points. They work on models with no gradient or a misleading one.

gradscope does not use the Square of torchattacks (a copy of AutoAttack's), for these reasons. In L2 it fails on images
smaller than 5 pixels and on sides such as 12, 14 or 24. Its squares never reach the last row and column. It draws one
square for a whole batch, so results depend on the batch. Here each image draws its own squares from its own random
stream, as in the paper.
"""

import itertools
import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from gradscope.attacks.compaction import replaced, who_stays
from gradscope.attacks.problem import Problem
from gradscope.functional import flatten, fooled, margin, norm_and_unit, per_sample
from gradscope.seeding import generator, sent

#: Queries, out of 10,000, after which the square's share of the pixels is halved; and the share at first.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
FIRST_SHARE = 0.8
#: Number of queries whose random numbers are drawn at once.
_BLOCK = 1000


def noise(problem: Problem) -> Tensor:
    """Try ``noise_points`` uniform points of the ball; return the first that fools the model, else the last."""
    points = problem.images.clone()
    rows = torch.arange(len(problem), device=points.device)
    left, standing = problem, torch.ones_like(rows, dtype=torch.bool)
    for draw in range(problem.budget.noise_points):
        drawn = left.start("ball", "noise", draw)
        replaced(points, rows, standing, drawn)
        standing = standing & ~left.fooled_at(drawn)
        stay = who_stays(standing, draw)
        if stay is not None:
            rows, left, standing = rows[stay], left.only(stay), standing[stay]
            if not len(stay):
                break
    return points


def square(problem: Problem, *, stretched: bool = True) -> Tensor:
    """Run the Square attack (Andriushchenko et al. 2020): random search with squares for the smallest margin.

    With ``stretched`` the squares shrink over the budget's queries as they do over 10,000 in the paper. Without it they
    shrink as if there were 10,000 queries, as in AutoAttack. Each image gets ``queries`` forward passes, or fewer if it
    is fooled earlier; on a random model (``problem.fixed`` is False) always ``queries``.
    """
    linf = problem.threat.norm == "linf"
    begin, propose, side_at = (_stripes, _recolour, _linf_side) if linf else (_bumps, _moved, _l2_side)
    queries = problem.budget.queries
    streams = [generator(problem.seed, "square", number) for number in problem.numbers.tolist()]
    rows = torch.arange(len(problem), device=problem.images.device)
    left, standing, draws, drawn = problem, torch.ones_like(rows, dtype=torch.bool), torch.empty(0), rows
    candidates = best = begin(problem, streams)
    points = candidates.clone()
    lowest = torch.full((len(problem),), math.inf, device=points.device)
    for query in range(queries):
        if query > 0:
            place = (query - 1) % _BLOCK
            if place == 0:
                remaining = [streams[row] for row in rows.tolist()]
                draws = sent(
                    _uniform(remaining, min(_BLOCK, queries - query), 5 + points.shape[1]), points.device, points.dtype
                )
                drawn = torch.arange(len(rows), device=rows.device)
            share = square_share(query, queries if stretched else 10_000)
            candidates = propose(left, best, draws[drawn, place], side_at(share, *points.shape[2:]))
        with torch.no_grad():
            logits = left.model(candidates)
        wrong, margins = left.fixed & fooled(logits, left.labels), margin(logits, left.labels)
        better = standing & (wrong | (margins < lowest))
        best, lowest = torch.where(per_sample(better, best), candidates, best), torch.where(better, margins, lowest)
        standing = standing & ~wrong
        stay = who_stays(standing, query)
        if stay is not None:
            points[rows] = best
            rows, standing, drawn = rows[stay], standing[stay], drawn[stay]
            left, best, lowest = left.only(stay), best[stay], lowest[stay]
            if not len(stay):
                break
    points[rows] = best
    return points


def square_share(query: int, queries: int) -> float:
    """Compute the share of the pixels that the square covers at ``query`` of ``queries``."""
    at = int(query / queries * 10_000)
    return FIRST_SHARE * 0.5 ** sum(at > halving for halving in HALVINGS)


def _uniform(streams: Sequence[torch.Generator], *shape: int) -> Tensor:
    """Draw uniform numbers in [0, 1), ``(N, *shape)``; each image uses its own stream."""
    return torch.stack([torch.rand(shape, generator=stream) for stream in streams])


def _signs(draws: Tensor) -> Tensor:
    return torch.where(draws < 0.5, -1.0, 1.0)


def _corners(draws: Tensor, side: int, height: int, width: int) -> Tensor:
    """Turn ``draws`` ``(N, 2)`` into the first row and column of squares that fit the image; int64 ``(N, 2)``."""
    # The sizes enter as plain numbers: a tensor of both would be copied to the device at every query.
    return torch.stack([draws[:, 0] * (height - side + 1), draws[:, 1] * (width - side + 1)], dim=1).long()


def _within(corner: Tensor, side: int, length: int) -> Tensor:
    """Mark the rows or columns, ``(N, length)``, of a square that begins at ``corner`` ``(N,)``."""
    place = torch.arange(length, device=corner.device)
    return (place >= corner.unsqueeze(1)) & (place < corner.unsqueeze(1) + side)


def _mask(corners: Tensor, side: int, height: int, width: int) -> Tensor:
    """Mark the pixels, ``(N, 1, H, W)``, of squares that begin at ``corners`` ``(N, 2)``."""
    rows, columns = _within(corners[:, 0], side, height), _within(corners[:, 1], side, width)
    return (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)


def _linf_side(share: float, height: int, width: int) -> int:
    return max(min(round(math.sqrt(share) * math.sqrt(height * width)), min(height, width) - 1), 1)


def _stripes(problem: Problem, streams: Sequence[torch.Generator]) -> Tensor:
    """Make Square's first L-infinity point: vertical stripes of +-epsilon in each channel."""
    images, threat = problem.images, problem.threat
    draws = sent(_uniform(streams, images.shape[1], 1, images.shape[3]), images.device, images.dtype)
    return threat.project(images + threat.epsilon * _signs(draws), images)


def _recolour(problem: Problem, best: Tensor, draws: Tensor, side: int) -> Tensor:
    """Set a square of ``best`` to +-epsilon in each channel (the paper's algorithm 2); flip it if nothing changes."""
    size, (low, high) = best.shape[2:], problem.ends
    inside = _mask(_corners(draws[:, :2], side, *size), side, *size)
    up = per_channel(draws[:, 5:] >= 0.5)
    changed = torch.where(inside, torch.where(up, high, low), best)
    unchanged = per_sample(flatten(changed == best).all(dim=1), best)
    return torch.where(unchanged & inside, torch.where(up, low, high), changed)


def per_channel(values: Tensor) -> Tensor:
    """Reshape ``(N, C)`` to ``(N, C, 1, 1)``."""
    return values[:, :, None, None]


@cache
def bump(side: int) -> Tensor:
    """Make the paper's eta, ``(side, side)`` of norm 1: a bump on the upper half, its negative on the lower half."""
    upper, lower = _half_bump(side // 2, side), _half_bump(side - side // 2, side)
    whole = torch.cat([upper, -lower])
    norm: Tensor = torch.linalg.vector_norm(whole)
    return whole / norm


def _half_bump(height: int, width: int) -> Tensor:
    """Compute ``sum over k >= m of 1 / (k + 1)^2``, m the Chebyshev distance to the centre, cut at the edge; norm 1."""
    rows, columns = (torch.arange(height) - height // 2).abs(), (torch.arange(width) - width // 2).abs()
    distance = torch.maximum(rows[:, None], columns[None, :])
    terms = 1 / torch.arange(1, max(height // 2, width // 2) + 2).square()
    height_at: Tensor = terms.flip(0).cumsum(0).flip(0)[distance]
    norm: Tensor = torch.linalg.vector_norm(height_at)
    return height_at / norm


def _l2_side(share: float, height: int, width: int) -> int:
    side = max(round(math.sqrt(share) * math.sqrt(height * width)), 3)
    return min(side + (side + 1) % 2, height, width)


def _bumps(problem: Problem, streams: Sequence[torch.Generator]) -> Tensor:
    """Make Square's first L2 point: a grid of bumps, about five on the shorter side, of random orientation and sign."""
    images = problem.images
    channels, *size = images.shape[1:]
    side = max(min(size) // 5, 1)
    begins = [max((length - 5 * side * (length // min(size))) // 2, 0) for length in size]
    places = (range(begin, length - side + 1, side) for begin, length in zip(begins, size, strict=True))
    tiles = list(itertools.product(*places))
    draws = sent(_uniform(streams, len(tiles), 1 + channels), images.device, images.dtype)
    delta = torch.zeros_like(images)
    for tile, (top, left) in enumerate(tiles):
        shape = _oriented(draws[:, tile, 0], side)
        delta[:, :, top : top + side, left : left + side] = per_channel(_signs(draws[:, tile, 1:])) * shape
    return _on_sphere(problem, delta)


def _oriented(draws: Tensor, side: int) -> Tensor:
    """Make bumps ``(N, 1, side, side)``, half of them transposed."""
    upright = bump(side).to(draws)
    return torch.where((draws < 0.5)[:, None, None], upright, upright.T).unsqueeze(1)


def _on_sphere(problem: Problem, delta: Tensor) -> Tensor:
    """Move from the images by epsilon along ``delta``, and cut the points to the box."""
    _, units = norm_and_unit(flatten(delta))
    moved = problem.images + problem.threat.epsilon * units.reshape(delta.shape)
    return problem.threat.project(moved, problem.images)


def _moved(problem: Problem, best: Tensor, draws: Tensor, side: int) -> Tensor:
    """Move the perturbation of one window of ``best`` to another and add a bump (the paper's algorithm 3)."""
    images, epsilon = problem.images, problem.threat.epsilon
    count, channels, *size = images.shape
    delta = best - images
    corners, others = (_corners(draws[:, place : place + 2], side, *size) for place in (0, 2))
    here, there = (_mask(ends, side, *size) for ends in (corners, others))
    within = torch.arange(side, device=images.device)
    window = (
        torch.arange(count, device=images.device)[:, None, None, None],
        torch.arange(channels, device=images.device)[None, :, None, None],
        (corners[:, 0, None] + within)[:, None, :, None],
        (corners[:, 1, None] + within)[:, None, None, :],
    )
    used = delta.square().sum(dim=(1, 2, 3), keepdim=True)
    in_windows = (delta * (here | there)).square().sum(dim=(2, 3), keepdim=True)
    available = ((epsilon**2 - used).clamp(min=0) / channels + in_windows).sqrt()
    shape = per_channel(_signs(draws[:, 5:])) * _oriented(draws[:, 4], side) + _unit_windows(delta[window])
    delta = delta * ~there
    delta[window] = _unit_windows(shape) * available
    return _on_sphere(problem, delta)


def _unit_windows(windows: Tensor) -> Tensor:
    """Divide each channel of windows ``(N, C, H, W)`` by its own norm."""
    norms: Tensor = torch.linalg.vector_norm(windows, dim=(2, 3), keepdim=True)
    return windows / (norms + 1e-12)
