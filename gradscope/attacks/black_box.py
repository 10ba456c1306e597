"""Attacks that ask for logits only: Square and random points. They work where there is no gradient, or a false one.

torchattacks' Square (a copy of AutoAttack's) is not used: in L2 it fails on images smaller than 5 pixels and of sides
such as 12, 14 or 24; its squares never reach the last row and column; and it draws one square for a whole batch, so
that results depend on the batch. Here each image draws its own, from its own stream, as in the paper.
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

#: Of 10,000 queries, those after which the share of the pixels in a square is halved, and that share at first.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
FIRST_SHARE = 0.8
#: Queries for which random numbers are drawn at a time.
_BLOCK = 1000


def noise(problem: Problem) -> Tensor:
    """The first of ``noise_points`` uniform points of the ball that fools the model; else the last."""
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
    """Square attack (Andriushchenko et al. 2020): random search with squares for the smallest margin of the logits.

    ``stretched``: the squares shrink over the budget's queries as over the paper's 10,000; AutoAttack lets them
    shrink as if there were always 10,000. Every image has ``queries`` forward passes or falls,
    unless a point that fools settles nothing.
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
                those = [streams[row] for row in rows.tolist()]
                draws = sent(
                    _uniform(those, min(_BLOCK, queries - query), 5 + points.shape[1]), points.device, points.dtype
                )
                drawn = torch.arange(len(rows), device=rows.device)
            share = square_share(query, queries if stretched else 10_000)
            candidates = propose(left, best, draws[drawn, place], side_at(share, *points.shape[2:]))
        with torch.no_grad():
            logits = left.model(candidates)
        wrong, found = left.fixed & fooled(logits, left.labels), margin(logits, left.labels)
        better = standing & (wrong | (found < lowest))
        best, lowest = torch.where(per_sample(better, best), candidates, best), torch.where(better, found, lowest)
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
    """Share of the pixels in the square of ``query``, of ``queries`` in all."""
    at = int(query / queries * 10_000)
    return FIRST_SHARE * 0.5 ** sum(at > halving for halving in HALVINGS)


def _uniform(streams: Sequence[torch.Generator], *shape: int) -> Tensor:
    """Uniform draws in [0, 1), ``(N, *shape)``, of each stream its own."""
    return torch.stack([torch.rand(shape, generator=stream) for stream in streams])


def _signs(draws: Tensor) -> Tensor:
    return torch.where(draws < 0.5, -1.0, 1.0)


def _corners(draws: Tensor, side: int, height: int, width: int) -> Tensor:
    """First row and column of squares, uniform where they fit; int64 ``(N, 2)`` like ``draws``."""
    # A number for each column of draws: a tensor of both would be copied to the device at every query.
    return torch.stack([draws[:, 0] * (height - side + 1), draws[:, 1] * (width - side + 1)], dim=1).long()


def _within(corner: Tensor, side: int, length: int) -> Tensor:
    """Which of ``length`` rows or columns are in a square that begins at ``corner`` ``(N,)``; ``(N, length)``."""
    place = torch.arange(length, device=corner.device)
    return (place >= corner.unsqueeze(1)) & (place < corner.unsqueeze(1) + side)


def _mask(corners: Tensor, side: int, height: int, width: int) -> Tensor:
    """The pixels of squares that begin at ``corners`` ``(N, 2)``: ``(N, 1, H, W)``."""
    rows, columns = _within(corners[:, 0], side, height), _within(corners[:, 1], side, width)
    return (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)


def _linf_side(share: float, height: int, width: int) -> int:
    return max(min(round(math.sqrt(share) * math.sqrt(height * width)), min(height, width) - 1), 1)


def _stripes(problem: Problem, streams: Sequence[torch.Generator]) -> Tensor:
    """Vertical stripes of +-epsilon in each channel: Square's first L-infinity point."""
    images, threat = problem.images, problem.threat
    draws = sent(_uniform(streams, images.shape[1], 1, images.shape[3]), images.device, images.dtype)
    return threat.project(images + threat.epsilon * _signs(draws), images)


def _recolour(problem: Problem, best: Tensor, draws: Tensor, side: int) -> Tensor:
    """``best`` with a square of +-epsilon in each channel (the paper's algorithm 2); of other sign if it was there."""
    size, (low, high) = best.shape[2:], problem.ends
    inside = _mask(_corners(draws[:, :2], side, *size), side, *size)
    up = per_channel(draws[:, 5:] >= 0.5)
    changed = torch.where(inside, torch.where(up, high, low), best)
    unchanged = per_sample(flatten(changed == best).all(dim=1), best)
    return torch.where(unchanged & inside, torch.where(up, low, high), changed)


def per_channel(values: Tensor) -> Tensor:
    """``(N, C)`` to ``(N, C, 1, 1)``."""
    return values[:, :, None, None]


@cache
def bump(side: int) -> Tensor:
    """The paper's eta, ``(side, side)`` of norm 1: a bump on the upper half, its negative on the lower."""
    upper, lower = _half_bump(side // 2, side), _half_bump(side - side // 2, side)
    whole = torch.cat([upper, -lower])
    norm: Tensor = torch.linalg.vector_norm(whole)
    return whole / norm


def _half_bump(height: int, width: int) -> Tensor:
    """``sum over k >= m of 1 / (k + 1)^2``, m the Chebyshev distance to the centre, cut at the edge; norm 1."""
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
    """Square's first L2 point: a grid of bumps, about five on the shorter side, upright or not, of either sign."""
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
    """Bumps ``(N, 1, side, side)``, half of them on their side."""
    upright = bump(side).to(draws)
    return torch.where((draws < 0.5)[:, None, None], upright, upright.T).unsqueeze(1)


def _on_sphere(problem: Problem, delta: Tensor) -> Tensor:
    """The points at distance epsilon along ``delta``, cut to the box."""
    _, units = norm_and_unit(flatten(delta))
    moved = problem.images + problem.threat.epsilon * units.reshape(delta.shape)
    return problem.threat.project(moved, problem.images)


def _moved(problem: Problem, best: Tensor, draws: Tensor, side: int) -> Tensor:
    """``best`` with the perturbation of one window taken to another, a bump added (the paper's algorithm 3)."""
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
    """Windows ``(N, C, H, W)``, each channel divided by its own norm."""
    norms: Tensor = torch.linalg.vector_norm(windows, dim=(2, 3), keepdim=True)
    return windows / (norms + 1e-12)
