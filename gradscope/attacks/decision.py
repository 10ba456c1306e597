"""Attacks that ask for labels only: RayS and HopSkipJump. Neither gradients nor logits can mislead them.

Two of them, for neither serves both norms: RayS moves along the corners of the L-infinity ball, whose perturbations are
long in L2; HopSkipJump measures its way in L2, and needs more queries in L-infinity.
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

#: Random images; an attack begins at the nearest of those that fool the model.
STARTS = 30
#: Random points at which the first normal of the boundary is estimated; the t-th at sqrt(t) times as many.
FIRST_ESTIMATE = 100
#: How far these lie from the boundary, as a share of the perturbation's L2 norm. The paper's share, one over the number
#: of pixels, is lost in float32's rounding.
RADIUS_SHARE = 0.01
#: Lengths of a step that are tried, each half of the one before.
LENGTHS = 8
#: Halvings of the way from the image to a point that fools the model.
HALVINGS = 13
#: Queries for which random numbers are drawn at a time.
_BLOCK = 8
#: A ray's length is known to this share of it.
TOLERANCE = 0.01


def hop_skip_jump(problem: Problem) -> Tensor:
    """HopSkipJump (Chen, Jordan and Wainwright 2020): along the boundary towards the image, by labels alone.

    Each iteration estimates the boundary's normal from the labels at random points around a point on it, steps along
    the normal, and goes back to the boundary on the way to the image. It ends where that point lies in the ball. Every
    image has at most ``queries`` forward passes.
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
        stay = who_stays(standing, 0)  # an iteration is a hundred queries: the count is worth its wait
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
    """The nearest random image that fools the model, and for which images ``(N,)`` there is one; else the image.

    Made of squares of 1, 2, 4, ... pixels in one colour: noise of single pixels is of one class for most models, so
    that no image of that class could begin.
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
    """On the way from the image to each of ``points``, which fool the model, the nearest found that does.

    The way is a line in L2; in L-infinity the ball around the image grows, and the point is cut to it.
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
    """The direction ``(N, C, H, W)`` in which the model is fooled, by the labels at ``count`` points nearby.

    ``mean over b of (phi_b - mean phi) u_b``, phi +1 where the model is fooled and -1 where it is not, u random
    directions; where phi is the same everywhere, its mean times that of u.
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
    """The farthest of the points along ``normal`` that fools the model; the point itself where none of them does."""
    step = normal.sign() if problem.threat.norm == "linf" else norm_and_unit(flatten(normal))[1].reshape(points.shape)
    length = problem.threat.distance(points, problem.images) / math.sqrt(iteration)
    farthest, found = points, torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for _ in range(LENGTHS):
        tried = _in_box(problem, points + per_sample(length, points) * step)
        new = problem.fooled_at(tried) & ~found
        farthest, found, length = torch.where(per_sample(new, tried), tried, farthest), found | new, length / 2
    return farthest


def _in_box(problem: Problem, points: Tensor) -> Tensor:
    return points.clamp(0, 1) if problem.threat.box else points


def rays(problem: Problem) -> Tensor:
    """RayS (Chen and Gu 2020): the direction of signs in which another class is nearest, by labels alone.

    It begins with all signs 1 and turns those of a block of pixels, of the whole image, of its halves, and so on. A
    direction in which the model is fooled at the shortest length so far is kept, and its length halved as long as the
    model is fooled. Nothing is drawn. An image ends where its point lies in the ball, or after ``queries`` passes.
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
    """Where the rays of N images are: the best ``signs`` ``(N, D)``, how far the nearest other class is along them,
    ``low`` and ``high`` ends of a search in progress, and the block to be turned: number ``block`` of 2^``level``.
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
        """All signs 1; a ray of length 1 ends in a corner of the box."""
        signs = torch.ones_like(flatten(images))
        ones, none = signs[:, 0], torch.zeros(len(images), dtype=torch.int64, device=images.device)
        return cls(signs, ones, ones, ones, none.bool(), none, none)

    def only(self, rows: Tensor) -> "_Search":
        """Those at ``rows`` ``(M,)``."""
        return _Search(*(getattr(self, field.name)[rows] for field in fields(self)))

    def tried(self) -> tuple[Tensor, Tensor]:
        """The direction ``(N, D)`` and the length ``(N,)`` to be asked for next."""
        size = self._block_size()
        pixel = torch.arange(self.signs.shape[1], device=self.signs.device)
        first = (self.block * size).unsqueeze(1)
        turned = (pixel >= first) & (pixel < first + size.unsqueeze(1)) & ~self.searching.unsqueeze(1)
        return torch.where(turned, -self.signs, self.signs), torch.where(self.searching, self._middle(), self.shortest)

    def after(self, direction: Tensor, length: Tensor, wrong: Tensor) -> "_Search":
        """After an answer: which images ``(N,)`` the model got ``wrong`` at ``length`` along ``direction``."""
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
        """Pixels in a block: the whole image's, halved ``level`` times and rounded up."""
        blocks = 2**self.level
        return (self.signs.shape[1] + blocks - 1) // blocks
