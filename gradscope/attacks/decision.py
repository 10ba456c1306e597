"""Attacks that use labels only: RayS and HopSkipJump. Neither gradients nor logits can mislead them.

There are two because neither serves both norms. RayS moves along the corners of the L-infinity ball, whose
perturbations are long in L2. HopSkipJump measures distance in L2 and needs more queries in L-infinity.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from gradscope.attacks.compaction import replaced, who_stays
from gradscope.attacks.problem import Problem
from gradscope.functional import flatten, norm_and_unit, per_sample
from gradscope.seeding import generator, sent

#: Number of random images tried first; the attack begins at the nearest one that fools the model.
STARTS = 30
#: Number of random points that estimate the boundary's first normal; the t-th estimate uses sqrt(t) times as many.
FIRST_ESTIMATE = 100
#: Distance of these points from the boundary, as a share of the perturbation's L2 norm. The paper's share, one over the
#: number of pixels, is lost in the rounding of float32.
RADIUS_SHARE = 0.01
#: Number of step lengths tried, each half of the one before.
LENGTHS = 8
#: Number of bisections between the image and a point that fools the model.
HALVINGS = 13
#: Number of queries whose random numbers are drawn at once.
_BLOCK = 8
#: Relative precision to which a ray's length is found.
TOLERANCE = 0.01


def hop_skip_jump(problem: Problem) -> Tensor:
    """Run HopSkipJump (Chen, Jordan and Wainwright 2020): walk along the boundary towards the image, by labels only.

    Each iteration starts at a point on the boundary and estimates the normal from the labels at random points nearby.
    It steps along the normal and then returns to the boundary towards the image. The attack ends when that point lies
    in the ball. Each image gets at most ``queries`` forward passes.
    """
    streams = [generator(problem.seed, "hop-skip-jump", number) for number in problem.numbers.tolist()]
    left, rows, iteration = problem, torch.arange(len(problem), device=problem.images.device), 0
    current, standing = _begin(problem, streams)
    spent = min(STARTS, problem.budget.queries) + HALVINGS
    if spent <= problem.budget.queries:
        current = _back_to_the_boundary(problem, current)
    points = current.clone()
    while True:
        standing = standing & (left.threat.distance(current, left.images) > left.threat.epsilon)
        stay = who_stays(standing, 0)  # an iteration takes over a hundred queries, so waiting for the count pays
        if stay is not None:
            rows, left, standing, current = rows[stay], left.only(stay), standing[stay], current[stay]
            streams = [streams[place] for place in stay.tolist()]
        iteration += 1
        estimate = int(FIRST_ESTIMATE * math.sqrt(iteration))
        spent += estimate + LENGTHS + HALVINGS
        if spent > problem.budget.queries or not len(rows):
            return points
        moved = _along(left, current, _normal(left, current, streams, estimate), iteration)
        current = _back_to_the_boundary(left, moved)
        replaced(points, rows, standing, current)


def _begin(problem: Problem, streams: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
    """Find the nearest random image that fools the model, and mark the images ``(N,)`` that have one.

    Where none fools the model, the point is the image itself. The random images consist of one-coloured squares of 1,
    2, 4, ... pixels. Most models put noise of single pixels into one class, so images of that class would have no
    start.
    """
    images = problem.images
    nearest, shortest = images, torch.full((len(problem),), math.inf, device=images.device)
    height, width = images.shape[2:]
    sizes = [2**power for power in range(min(height, width).bit_length())]
    for query in range(min(STARTS, problem.budget.queries)):
        size = sizes[query % len(sizes)]
        shape = images.shape[1], -(-height // size), -(-width // size)
        drawn = torch.stack([torch.rand(shape, generator=stream) for stream in streams])
        drawn = F.interpolate(drawn, scale_factor=size)[:, :, :height, :width]
        point = sent(drawn.contiguous(), images.device, images.dtype)
        distance = problem.threat.distance(point, images)
        nearer = problem.fooled_at(point) & (distance < shortest)
        nearest = torch.where(per_sample(nearer, point), point, nearest)
        shortest = torch.where(nearer, distance, shortest)
    return nearest, shortest.isfinite()


def _back_to_the_boundary(problem: Problem, points: Tensor) -> Tensor:
    """Bisect between each image and its point, which fools the model; return the nearest point that still does.

    In L2 the path is a straight line. In L-infinity the point is cut to balls of growing radius around the image.
    """
    low, high = torch.zeros(len(points), device=points.device), torch.ones(len(points), device=points.device)
    distance = problem.threat.distance(points, problem.images)

    def at(share: Tensor) -> Tensor:
        if problem.threat.norm == "l2":
            return problem.images.lerp(points, per_sample(share, points))
        reach = per_sample(share * distance, points)
        return points.clamp(problem.images - reach, problem.images + reach)

    for _ in range(HALVINGS):
        middle = (low + high) / 2
        wrong = problem.fooled_at(at(middle))
        low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
    return at(high)


def _normal(problem: Problem, points: Tensor, streams: Sequence[torch.Generator], count: int) -> Tensor:
    """Estimate the boundary's normal ``(N, C, H, W)`` from the labels at ``count`` random points nearby.

    The estimate is ``mean over b of (phi_b - mean phi) u_b``, with random directions u, phi = +1 where the model is
    fooled and -1 elsewhere. Where phi is the same at all points, it is the mean of phi times the mean of u.
    """
    length = RADIUS_SHARE * torch.linalg.vector_norm(flatten(points - problem.images), dim=1)
    radius = per_sample(length.clamp(min=torch.finfo(points.dtype).tiny), points)
    signed, plain, votes = torch.zeros_like(points), torch.zeros_like(points), torch.zeros_like(length)
    draws = torch.empty(0)
    for query in range(count):
        place = query % _BLOCK
        if place == 0:
            shape = min(_BLOCK, count - query), *points.shape[1:]
            drawn = torch.empty(len(streams), *shape)
            for row, stream in zip(drawn.unbind(), streams, strict=True):
                if problem.threat.norm == "l2":
                    row.normal_(generator=stream)
                else:
                    row.uniform_(-1, 1, generator=stream)
            draws = sent(drawn, points.device, points.dtype)
        _, units = norm_and_unit(flatten(draws[:, place]))
        near = _in_box(problem, points + radius * units.reshape(points.shape))
        direction = (near - points) / radius
        vote = 2.0 * problem.fooled_at(near) - 1
        signed, plain, votes = signed + per_sample(vote, points) * direction, plain + direction, votes + vote
    mean = per_sample(votes / count, points)
    return torch.where(mean.abs() == 1, mean * plain, signed - mean * plain)


def _along(problem: Problem, points: Tensor, normal: Tensor, iteration: int) -> Tensor:
    """Step along ``normal``: return the farthest point tried that fools the model, or the point itself if none does."""
    step = normal.sign() if problem.threat.norm == "linf" else norm_and_unit(flatten(normal))[1].reshape(points.shape)
    length = problem.threat.distance(points, problem.images) / math.sqrt(iteration)
    farthest, done = points, torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for _ in range(LENGTHS):
        tried = _in_box(problem, points + per_sample(length, points) * step)
        new = problem.fooled_at(tried) & ~done
        farthest, done, length = torch.where(per_sample(new, tried), tried, farthest), done | new, length / 2
    return farthest


def _in_box(problem: Problem, points: Tensor) -> Tensor:
    return points.clamp(0, 1) if problem.threat.box else points


def rays(problem: Problem) -> Tensor:
    """Run RayS (Chen and Gu 2020): find the direction of signs in which another class is nearest, by labels only.

    The search begins with all signs 1. It flips the signs of one block of pixels at a time: the whole image, its
    halves, its quarters, and so on. If the model is fooled along a direction at the shortest length so far, RayS keeps
    the direction and bisects its length. No random numbers are used. The search for an image ends when its point lies
    in the ball, or after ``queries`` forward passes.
    """
    images, points = problem.images, problem.images.clone()
    left, rows, search = problem, torch.arange(len(problem), device=images.device), _Search.begin(images)
    standing = torch.ones_like(rows, dtype=torch.bool)
    for query in range(problem.budget.queries):
        direction, length = search.tried()
        tried = _in_box(left, left.images + (length.unsqueeze(1) * direction).reshape(left.images.shape))
        wrong = left.fooled_at(tried)
        replaced(points, rows, standing & wrong, tried)
        standing = standing & ~(wrong & (left.threat.distance(tried, left.images) <= left.threat.epsilon))
        search = search.after(direction, length, wrong)
        stay = who_stays(standing, query)
        if stay is not None:
            rows, left, standing, search = rows[stay], left.only(stay), standing[stay], search.only(stay)
            if not len(stay):
                break
    return points


@dataclass(frozen=True)
class _Search:
    """State of RayS on N images: the best ``signs`` ``(N, D)`` and the ``shortest`` length that fools the model.

    ``low`` and ``high`` are the ends of a bisection that is in progress. The next block to flip is number ``block`` of
    2^``level``.
    """

    signs: Tensor
    shortest: Tensor
    low: Tensor
    high: Tensor
    searching: Tensor
    level: Tensor
    block: Tensor

    @classmethod
    def begin(cls, images: Tensor) -> "_Search":
        """Start with all signs 1 and length 1, which reaches a corner of the box."""
        signs = torch.ones_like(flatten(images))
        ones, none = signs[:, 0], torch.zeros(len(images), dtype=torch.int64, device=images.device)
        return cls(signs, ones, ones, ones, none.bool(), none, none)

    def only(self, rows: Tensor) -> "_Search":
        """Select the images at ``rows`` ``(M,)``."""
        return _Search(*(getattr(self, field.name)[rows] for field in fields(self)))

    def tried(self) -> tuple[Tensor, Tensor]:
        """Return the direction ``(N, D)`` and the length ``(N,)`` to query next."""
        size = self._block_size()
        pixel = torch.arange(self.signs.shape[1], device=self.signs.device)
        first = (self.block * size).unsqueeze(1)
        turned = (pixel >= first) & (pixel < first + size.unsqueeze(1)) & ~self.searching.unsqueeze(1)
        return torch.where(turned, -self.signs, self.signs), torch.where(self.searching, self._middle(), self.shortest)

    def after(self, direction: Tensor, length: Tensor, wrong: Tensor) -> "_Search":
        """Return the state after a query: the images ``(N,)`` that are ``wrong`` at ``length`` along ``direction``."""
        low = torch.where(self.searching, torch.where(wrong, self.low, length), 0.0)
        high = torch.where(wrong, length, self.high)
        searching = (self.searching | wrong) & (high - low > TOLERANCE * high)
        size, pixels = self._block_size(), self.signs.shape[1]
        ended = (self.block + 1) * size >= pixels
        level = torch.where(ended, torch.where(size == 1, 0, self.level + 1), self.level)
        block = torch.where(ended, 0, self.block + 1)
        return _Search(
            torch.where(wrong.unsqueeze(1), direction, self.signs),
            torch.where(wrong, length, self.shortest),
            low,
            high,
            searching,
            torch.where(searching, self.level, level),
            torch.where(searching, self.block, block),
        )

    def _middle(self) -> Tensor:
        return (self.low + self.high) / 2

    def _block_size(self) -> Tensor:
        """Return the number of values in a block: those of the image, halved ``level`` times and rounded up."""
        blocks = 2**self.level
        return (self.signs.shape[1] + blocks - 1) // blocks
