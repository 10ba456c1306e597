"""Wraps the model during a trial: records every point and gradient of the attack, and can change one part of it."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from gradscope.functional import flatten, fooled, norm_and_unit, per_sample
from gradscope.judging.attacks import Batch
from gradscope.losses import LOSSES
from gradscope.models.inspection import copied, into_evaluation

#: Losses whose gradient in the logits is compared with the attack's.
KNOWN = ("cross-entropy", "log-odds", "margin", "dlr", "rescaled-cross-entropy")
#: Smallest norm that float64 gradients are given before they are rounded to a type; half precision ends at 6e-8.
_SMALLEST = {torch.float16: 1e-3, torch.bfloat16: 1e-30, torch.float32: 1e-30, torch.float64: 0.0}


@dataclass(frozen=True)
class Change:
    """One change made between the attack and the model; everything else stays as the attack does it.

    Changes of the gradient:
    ``loss``: the gradient in the logits becomes that of this loss, with the norm of the attack's own; ``sign`` is 1 if
    the attack moves up the gradient that it sees, -1 if down.
    ``summed``: gradients are multiplied by the number of images in the batch.
    ``weight``: gradients are multiplied by this number.
    ``long``: every non-zero gradient gets at least norm 1; ``unit``: exactly norm 1.

    Changes of the model:
    ``precise``: model and loss compute in float64.
    ``evaluating``: the model stays in evaluation mode.
    ``scale`` and ``shift``, ``(C, 1, 1)``: the attack's points are ``scale * x + shift``; the model gets x.

    Changes of the path: the model sees points on another path, which stays in ball and box.
    ``stretch``: the attack's steps, this many times as long.
    ``step_size``: steps of this size (pixel units) along the gradients instead.
    ``random_start``: the path begins at a random point of the ball.
    ``calls``: the attack is called this often; the first call is unchanged, later calls continue from the best point.
    """

    loss: str = ""
    sign: int = 1
    summed: bool = False
    weight: float = 1.0
    long: bool = False
    unit: bool = False
    precise: bool = False
    evaluating: bool = False
    scale: Tensor | None = None
    shift: Tensor | None = None
    stretch: float = 1.0
    step_size: float | None = None
    random_start: bool = False
    calls: int = 1

    @property
    def moves(self) -> bool:
        """Whether the model sees another path already during the first call."""
        return self.stretch != 1 or self.step_size is not None or self.random_start


NOTHING = Change()


class Watch(nn.Module):
    """Wraps ``model``, a private copy in evaluation mode, and records an attack on the images of ``batch``.

    If the attack passes as many points as images, point i belongs to image i; else a point belongs to the nearest
    image.
    """

    def __init__(self, model: nn.Module, batch: Batch, change: Change = NOTHING) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        self.change = change
        self._batch = batch
        # In a list, so that the attack's calls such as .half() do not convert it.
        self._precise = [copied(model).double()] if change.precise else []
        images, count = batch.images, len(batch.images)
        self._point, self._path = images.clone(), images.clone()
        self._gradient = torch.zeros_like(images)
        self._moved = torch.zeros(count, dtype=torch.bool, device=images.device)
        self._fresh, self._resumed = torch.ones_like(self._moved), False
        self._lengths: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.steps = torch.zeros(count, dtype=torch.int64, device=images.device)
        self.upward = torch.zeros(count, dtype=torch.float64, device=images.device)
        self.first_distance = torch.full((count,), torch.nan, dtype=torch.float64, device=images.device)
        self.first_point = images.clone()
        self.still = torch.ones_like(self._moved)
        self.trained = torch.zeros_like(self._moved)
        self.low_precision = torch.zeros_like(self._moved)
        self.zero_gradient = torch.zeros_like(self._moved)
        self.best, self.has_best = images.clone(), torch.zeros_like(self._moved)
        shape = (count, len(KNOWN))
        self.cosine = torch.full(shape, torch.nan, dtype=torch.float64, device=images.device)
        self.ratio = torch.full(shape, torch.nan, dtype=torch.float64, device=images.device)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits at the points, or at the points that the change puts in their place."""
        if not isinstance(images, Tensor) or images.shape[1:] != self._batch.images.shape[1:] or not len(images):
            unknown: Tensor = self.model(images)
            return unknown
        rows, fed = self._owners(images), images.detach().to(self._point)
        if self.change.evaluating:
            into_evaluation(self.model)
        differentiable = torch.is_grad_enabled() and images.requires_grad
        point = self._shown(images, fed, rows)
        if differentiable:
            self._note_step(fed, rows)
            self._note_pass(fed, rows, images.dtype)
            point.register_hook(lambda gradient: self._on_gradient(gradient, rows))
        logits = self._logits(point)
        if differentiable and logits.requires_grad:
            logits.register_hook(lambda gradient: self._on_logits(gradient, logits.detach(), rows))
        if self.change is NOTHING:
            self._keep_best(fed, logits.detach(), rows)
        return logits

    def _owners(self, images: Tensor) -> Tensor:
        """Find the image, by index ``(M,)``, that each point belongs to."""
        own = self._batch.images
        if len(images) == len(own):
            return torch.arange(len(own), device=own.device)
        return torch.cdist(flatten(images.detach().to(own)), flatten(own)).argmin(dim=1)

    def _shown(self, images: Tensor, fed: Tensor, rows: Tensor) -> Tensor:
        """Return the points that the model sees; gradients flow from them back to ``images``."""
        change = self.change
        if change.scale is not None and change.shift is not None:
            return (images - change.shift.to(images)) / change.scale.to(images)
        if self._moves:
            return images + (self._walked(fed, rows).to(images) - images).detach()
        return images.view_as(images)

    def _logits(self, point: Tensor) -> Tensor:
        if not self._precise:
            logits: Tensor = self.model(point)
            return logits
        kind, exact = point.dtype, point.double()
        if exact.requires_grad:
            exact.register_hook(lambda gradient: _at_least(gradient, _SMALLEST.get(kind, 0.0)))
        for exact_module, module in zip(self._precise[0].modules(), self.model.modules(), strict=True):
            exact_module.training = module.training
        with torch.autocast(point.device.type, enabled=False):
            exact_logits: Tensor = self._precise[0](exact)
            return exact_logits

    def _walked(self, fed: Tensor, rows: Tensor) -> Tensor:
        """Return the changed path's next point when the attack moves on to ``fed``; ``fed`` itself without a change."""
        change, batch = self.change, self._batch
        if not self._moves:
            return fed
        if change.step_size is None:
            further = change.stretch * (fed - self._point[rows])
        else:
            further = change.sign * batch.threat.steepest_step(self._gradient[rows], change.step_size)
            further = further * per_sample(self._moved[rows], fed)
        start = fed + self._offset[rows] if change.random_start else fed
        start = self._path[rows] if self._resumed else start
        path = torch.where(per_sample(self._fresh[rows], fed), start, self._path[rows] + further)
        return batch.threat.project(path.nan_to_num(0.5), batch.images[rows])

    def _note_step(self, fed: Tensor, rows: Tensor) -> None:
        """Record the step from the point of the last gradient to ``fed``."""
        walked = self._moved[rows]
        if bool(walked.any()):
            step = fed - self._point[rows]
            length = self._batch.threat.distance(step, torch.zeros_like(step)).double()
            norm, unit = norm_and_unit(flatten(self._gradient[rows].double()))
            rate = self._length_asked(fed, rows, unit) / norm
            self._lengths.append((rows[walked], length[walked], norm[walked], rate[walked]))
            upward = (flatten(step).double() * unit).sum(dim=1)
            self.upward.index_add_(0, rows, torch.where(walked, upward, 0.0))
        self._path[rows] = self._walked(fed, rows)
        self._point[rows], self._moved[rows], self._fresh[rows] = fed, False, False

    def _length_asked(self, fed: Tensor, rows: Tensor, unit: Tensor) -> Tensor:
        """Estimate the length of the step to ``fed`` along ``unit`` before projection into the ball; NaN if unknown.

        Where the box cuts nothing off, ``fed - x = a (point - x + s unit)``, with a = 1 inside the ball. s is found by
        least squares; it is unknown if the residual exceeds a tenth of the step.
        """
        threat, images = self._batch.threat, self._batch.images[rows]
        near = threat.distance(fed, images) < 0.99 * threat.epsilon
        free = (fed > 0) & (fed < 1)
        if threat.norm == "linf":
            free &= (fed - images).abs() < 0.99 * threat.epsilon
            near = torch.ones_like(near)
        before, after, way = (
            torch.where(flatten(free), flatten(values).double(), 0.0)
            for values in (self._point[rows] - images, fed - images, unit)
        )
        bb, bw, ww = ((left * right).sum(dim=1) for left, right in ((before, before), (before, way), (way, way)))
        ab, aw = (after * before).sum(dim=1), (after * way).sum(dim=1)
        det = bb * ww - bw.square()
        shrunk = torch.where(near, 1.0, (ab * ww - aw * bw) / det)
        along = torch.where(near, (aw - bw) / ww, (aw * bb - ab * bw) / det)
        residual = (after - per_sample(shrunk, after) * before - per_sample(along, after) * way).norm(dim=1)
        known = (near | (det > 0.1 * bb * ww)) & (residual < 0.1 * (after - before).norm(dim=1)) & (shrunk > 0)
        return torch.where(known, (along / shrunk).abs(), torch.nan)

    @cached_property
    def _offset(self) -> Tensor:
        """Offsets from each image to a random point of its ball."""
        batch = self._batch
        start = batch.threat.random_start(batch.images, "ball", batch.seed, ("judging",), batch.numbers)
        return start - batch.images

    def _note_pass(self, fed: Tensor, rows: Tensor, kind: torch.dtype) -> None:
        """Record that the attack asks for a gradient at ``fed``."""
        first = self.steps[rows] == 0
        distance = self._batch.threat.distance(fed, self._batch.images[rows]).double()
        self.first_distance[rows] = torch.where(first, distance, self.first_distance[rows])
        self.first_point[rows] = torch.where(per_sample(first, fed), fed, self.first_point[rows])
        self.still[rows] &= flatten(fed == self.first_point[rows]).all(dim=1)
        self.steps.index_add_(0, rows, torch.ones_like(rows))
        self.trained[rows] |= any(module.training for module in self.model.modules())
        autocast = torch.is_autocast_enabled(fed.device.type)
        self.low_precision[rows] |= autocast or kind in (torch.float16, torch.bfloat16)

    def _on_logits(self, gradient: Tensor, logits: Tensor, rows: Tensor) -> Tensor | None:
        """Compare the gradient in the logits with those of known losses, once per image; apply the change to it."""
        change = self.change
        if change.summed:
            return gradient * len(gradient)
        if change.weight != 1:
            return gradient * change.weight
        labels = self._batch.labels[rows]
        if change.loss:
            slope = change.sign * _slope(change.loss, logits, labels)
            length = torch.linalg.vector_norm(gradient.double(), dim=1, keepdim=True)
            natural = torch.linalg.vector_norm(slope, dim=1, keepdim=True).clamp(min=1e-300)
            lasting = (length > 0) & length.isfinite()
            return torch.where(lasting, slope / natural * length, slope).to(gradient)
        new = self.cosine[rows, 0].isnan()
        if change is NOTHING and bool(new.any()):
            norm, unit = norm_and_unit(gradient.double())
            for place, name in enumerate(KNOWN):
                if name == "dlr" and logits.shape[1] < 3:
                    continue
                theirs, direction = norm_and_unit(_slope(name, logits, labels))
                inner = (unit * direction).sum(dim=1)
                self.cosine[rows, place] = torch.where(new, inner, self.cosine[rows, place])
                self.ratio[rows, place] = torch.where(new, norm / theirs, self.ratio[rows, place])
        return None

    def _on_gradient(self, gradient: Tensor, rows: Tensor) -> Tensor | None:
        """Record the gradient that the attack gets, after lengthening it if the change says so."""
        change = self.change
        changed = _at_least(gradient, 1.0) if change.long else gradient
        changed = norm_and_unit(flatten(gradient))[1].reshape(gradient.shape) if change.unit else changed
        self._gradient[rows], self._moved[rows] = changed.to(self._gradient), True
        self.zero_gradient[rows] |= flatten(changed == 0).all(dim=1)
        return changed if change.long or change.unit else None

    def _keep_best(self, fed: Tensor, logits: Tensor, rows: Tensor) -> None:
        """Keep each image's first point in ball and box that fools the model."""
        batch = self._batch
        inside = ~leaves_ball(fed, batch.images[rows], batch) & ~leaves_box(fed)
        new = fooled(logits, batch.labels[rows]) & inside & ~self.has_best[rows]
        self.best[rows] = torch.where(per_sample(new, fed), fed, self.best[rows])
        self.has_best[rows] |= new

    def again(self, points: Tensor) -> None:
        """Prepare another call of the attack, whose path continues from ``points``."""
        self._path = points.clone()
        self._fresh.fill_(True)
        self._moved.fill_(False)
        self._resumed = True

    @property
    def _moves(self) -> bool:
        """Whether the model sees another path than the attack's."""
        return self.change.moves or self._resumed

    def reached(self, examples: Tensor) -> Tensor:
        """Convert the ``examples`` that the attack returned to points of the path that the model saw."""
        rows = torch.arange(len(examples), device=examples.device)
        self._note_step(examples, rows)
        if self.change.scale is not None and self.change.shift is not None:
            back = (examples - self.change.shift.to(examples)) / self.change.scale.to(examples)
            near = self._batch.threat.distance(back, self._batch.images)
            nearer = near < self._batch.threat.distance(examples, self._batch.images)
            return torch.where(per_sample(nearer, back), back, examples)
        return self._path if self._moves else examples

    @property
    def walk(self) -> dict[str, Tensor]:
        """Statistics of the steps of each image; NaN where it took no step.

        ``length`` ``(N,)``: median step length. ``share`` ``(N,)``: median of step length over gradient norm. ``norms``
        and ``rates``, ``(N, 2)``: the gradient's norm, and the requested step length over it, at the shortest and at
        the longest gradient.
        """
        blank = torch.full((len(self.steps), 2), torch.nan, dtype=torch.float64)
        statistics = {
            "length": blank[:, 0].clone(),
            "share": blank[:, 0].clone(),
            "norms": blank,
            "rates": blank.clone(),
        }
        if self._lengths:
            rows, lengths, norms, rates = (torch.cat(parts).cpu() for parts in zip(*self._lengths, strict=True))
            for row in rows.unique().tolist():
                own = rows == row
                statistics["length"][row] = lengths[own].median()
                statistics["share"][row] = (lengths[own] / norms[own]).nan_to_num(0.0, posinf=0.0).median()
                own &= rates.isfinite()
                if bool(own.any()):
                    ends = norms[own].argmin(), norms[own].argmax()
                    statistics["norms"][row] = torch.stack([norms[own][end] for end in ends])
                    statistics["rates"][row] = torch.stack([rates[own][end] for end in ends])
        return statistics


def _slope(name: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the gradient ``(N, K)`` of a loss in the logits, in float64."""
    with torch.enable_grad():
        exact = logits.double().requires_grad_()
        (slope,) = torch.autograd.grad(LOSSES[name](exact, labels).sum(), exact)
    return slope


def _at_least(gradient: Tensor, norm: float) -> Tensor:
    """Lengthen each sample's gradient to ``norm`` where it is shorter and not 0."""
    norms, units = norm_and_unit(flatten(gradient))
    short = per_sample((norms > 0) & (norms < norm), gradient)
    return torch.where(short, units.reshape(gradient.shape) * norm, gradient)


def rounding(kind: torch.dtype) -> float:
    """Bound the rounding error of a point of this type that was made from float32 images, in pixel units."""
    return 8 * max(float(torch.finfo(dtype).eps) for dtype in (kind, torch.float32))


def leaves_ball(points: Tensor, images: Tensor, batch: Batch, kind: torch.dtype = torch.float32) -> Tensor:
    """Mark the ``points`` ``(N, ...)`` of type ``kind`` that lie outside the ball by more than rounding, ``(N,)``."""
    spread = 1.0 if batch.threat.norm == "linf" else images[0].numel() ** 0.5
    return ~(batch.threat.distance(points, images) <= batch.threat.epsilon + spread * rounding(kind))


def leaves_box(points: Tensor, kind: torch.dtype = torch.float32) -> Tensor:
    """Mark the ``points`` ``(N, ...)`` of type ``kind`` that lie outside [0, 1] by more than rounding, ``(N,)``."""
    low, high = -rounding(kind), 1 + rounding(kind)
    return flatten((points < low) | (points > high)).any(dim=1)
