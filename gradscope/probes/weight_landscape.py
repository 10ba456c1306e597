"""The loss around a network's weights, on planes of filter-normalised or given directions."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradscope.attacks.pgd import Streams, pgd, prepared
from gradscope.config import PGD
from gradscope.data.image_set import ImageSet
from gradscope.distributed.units import halving
from gradscope.errors import GradscopeError, first_of
from gradscope.losses import cross_entropy
from gradscope.models.inspection import copied, laid_out, measuring, one_line
from gradscope.probes.connection import bezier
from gradscope.seeding import generator, seeded

#: A step in weight space: one tensor per parameter, by name.
Direction = dict[str, Tensor]

#: Measures a point, by name of the value; it gets a network with the point's weights, in evaluation mode.
Measure = Callable[[nn.Module], Mapping[str, Tensor | float]]

#: Images of a batch, labels, and the attack's first points.
_Batch = tuple[Tensor, Tensor, Tensor | None]

#: Number of groups of images with separate sums, for the jackknife.
GROUPS = 10

#: Number of images in a forward pass; on a CPU their activations stay in the caches.
IMAGES_AT_ONCE = {"cpu": 32, "cuda": 1024}


def filter_normalised_direction(model: nn.Module, *, seed: int, name: str) -> Direction:
    """Draw a Gaussian direction and scale each filter to its weight's norm: ``d <- d |w| / |d|`` (Li et al. 2018).

    A filter is a slice along a parameter's first axis. The direction is zero in parameters of one axis (biases, batch
    norm). Each parameter draws from its own random stream. Raises :class:`GradscopeError` if the model has no other
    parameters.
    """
    direction = {key: _normalised(weight, seed, name, key) for key, weight in model.named_parameters()}
    if not any(part.any() for part in direction.values()):
        raise GradscopeError("model must have a non-zero parameter of two or more axes, got none")
    return direction


def _normalised(weight: Tensor, seed: int, name: str, key: str) -> Tensor:
    weight = weight.detach()
    if weight.dim() < 2:
        return torch.zeros_like(weight)
    drawn = torch.randn(weight.shape, generator=generator(seed, name, key)).to(weight)
    rows = drawn.flatten(1)
    scale = weight.flatten(1).norm(dim=1, keepdim=True) / rows.norm(dim=1, keepdim=True)
    scaled: Tensor = rows * scale
    return scaled.reshape(weight.shape)


def direction_towards(model: nn.Module, state: Mapping[str, Tensor]) -> Direction:
    """Compute the direction from ``model``'s parameters to those of ``state``: 0 is the model, 1 is the state.

    Raises :class:`GradscopeError` if a parameter is missing in ``state`` or has another shape.
    """
    direction = {}
    for key, weight in model.named_parameters():
        if key not in state or state[key].shape != weight.shape:
            there = tuple(state[key].shape) if key in state else "none"
            raise GradscopeError(
                f"model must have the same parameters at both ends; {key} is {tuple(weight.shape)} and {there}"
            )
        direction[key] = state[key].to(weight) - weight.detach()
    return direction


def orthogonal_to(direction: Direction, other: Direction) -> Direction:
    """Remove from ``direction`` its part along ``other``, over all parameters together.

    Raises :class:`GradscopeError` if the directions are parallel, to one part in 10^5.
    """
    share = _inner(direction, other) / _inner(other, other)
    remainder = {key: part - share * other[key] for key, part in direction.items()}
    if _inner(remainder, remainder) <= 1e-10 * _inner(direction, direction):
        raise GradscopeError("directions must span a plane, got two parallel ones")
    return remainder


def _inner(first: Direction, second: Direction) -> float:
    return sum(float((part.double() * second[key].double()).sum()) for key, part in first.items())


def principal_directions(
    model: nn.Module, states: Sequence[Mapping[str, Tensor]]
) -> tuple[tuple[Direction, Direction], NDArray[np.float64], tuple[float, float]]:
    """Compute the two principal directions of ``states`` around ``model``'s parameters (Li et al. 2018), of length 1.

    Also returns the states projected onto them, ``(E, 3)``: a, b and the distance from the plane; and the share of the
    squared distances that each direction explains. Raises :class:`GradscopeError` if fewer than two states differ from
    the model, or if all lie on one line.
    """
    steps = [direction_towards(model, state) for state in states]
    gram = np.array([[_inner(first, second) for second in steps] for first in steps]).reshape(len(steps), -1)
    values, vectors = np.linalg.eigh(gram) if len(steps) > 1 else (np.zeros(2), np.zeros((2, 2)))
    largest = values[[-1, -2]]
    if largest[1] <= 1e-10 * largest[0] or largest[0] == 0:
        raise GradscopeError(
            f"epochs must hold weights that span a plane, of three epochs or more, got {len(steps)} on one line"
        )
    weights = vectors[:, [-1, -2]] / np.sqrt(largest)
    # An eigenvector's sign is arbitrary, so put the earliest state on the positive side.
    weights *= np.where((gram @ weights)[0] < 0, -1, 1)
    first, second = ({key: _combined(steps, key, share) for key in steps[0]} for share in weights.T)
    path = gram @ weights
    off = np.sqrt(np.clip(np.diag(gram) - np.square(path).sum(axis=1), 0, None))
    explained = tuple(float(share) for share in largest / np.trace(gram))
    return (first, second), np.column_stack([path, off]), (explained[0], explained[1])


def _combined(steps: Sequence[Direction], key: str, shares: NDArray[np.float64]) -> Tensor:
    total = torch.zeros_like(steps[0][key], dtype=torch.float64)
    for step, share in zip(steps, shares.tolist(), strict=True):
        total += share * step[key]
    return total.to(steps[0][key])


def aligned_axis(low: float, high: float, points: int) -> Tensor:
    """Make ``points`` even coordinates ``(P,)`` that cover ``low`` to ``high``, one of them exactly 0.

    ``low <= 0 <= high`` and ``low < high``.
    """
    below = min(max(round(-low / (high - low) * (points - 1)), int(low < 0)), points - 1 - int(high > 0))
    step = max(
        -low / below if below else 0.0,
        high / (points - 1 - below) if below < points - 1 else 0.0,
    )
    return (torch.arange(points, dtype=torch.float64) - below) * step


def line_axis(margin: float, points: int) -> Tensor:
    """Make ``points`` even coordinates ``(P,)`` that include 0 and 1 exactly and reach about ``margin`` beyond each."""
    beyond = int(margin / (1 + 2 * margin) * (points - 1))
    between = points - 1 - 2 * beyond
    return (torch.arange(points, dtype=torch.float64) - beyond) / between


def evaluate_plane(
    model: nn.Module,
    first: Direction,
    second: Direction | None,
    axes: tuple[Tensor, Tensor],
    measure: Measure,
    *,
    advanced: Callable[[int, str], None] = lambda points, note: None,
) -> dict[str, NDArray[np.float64]]:
    """Apply ``measure`` at ``w + a * first + b * second`` for all coordinates of ``axes``; values ``(A, B, ...)``.

    Each point's weights are computed from w itself, so nothing drifts; at a = b = 0 they equal w bit for bit. A copy of
    the model is used, with the model's own buffers at every point. If ``second`` is None the points lie on a line.
    ``measure`` is called with gradients off.
    """
    origin = {key: parameter.detach() for key, parameter in _parameters(model, first).items()}

    def points() -> Iterator[Direction]:
        for a in axes[0].tolist():
            start = {key: torch.add(weight, first[key], alpha=a) for key, weight in origin.items()}
            for b in axes[1].tolist():
                yield start if second is None else _along(start, second, b)

    return _evaluate(model, points(), (len(axes[0]), len(axes[1])), measure, advanced)


def evaluate_curve(
    model: nn.Module,
    controls: Sequence[Direction],
    axis: Tensor,
    measure: Measure,
    *,
    advanced: Callable[[int, str], None] = lambda points, note: None,
) -> dict[str, NDArray[np.float64]]:
    """Apply ``measure`` along :func:`~gradscope.probes.connection.bezier` of ``controls``; values ``(T, 1, ...)``.

    ``axis`` ``(T,)`` holds the positions t on the curve. Otherwise as :func:`evaluate_plane`.
    """
    points = (dict(bezier(share, controls)) for share in axis.tolist())
    return _evaluate(model, points, (len(axis), 1), measure, advanced)


def _along(start: Direction, direction: Direction, share: float) -> Direction:
    return {key: torch.add(weight, direction[key], alpha=share) for key, weight in start.items()}


def _evaluate(
    model: nn.Module,
    points: Iterator[Direction],
    shape: tuple[int, int],
    measure: Measure,
    advanced: Callable[[int, str], None],
) -> dict[str, NDArray[np.float64]]:
    """Apply ``measure`` to a copy of ``model`` with the weights of each of ``points``, row after row."""
    moving = copied(model)
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    values: dict[str, NDArray[np.float64]] = {}
    with measuring(moving), torch.no_grad():
        for place, weights in zip(np.ndindex(shape), points, strict=True):
            for key, parameter in _parameters(moving, weights).items():
                parameter.copy_(weights[key])
            for key, buffer in moving.named_buffers():
                buffer.copy_(buffers[key])
            for name, value in measure(moving).items():
                measured = np.asarray(value, dtype=np.float64)
                values.setdefault(name, np.full((*shape, *measured.shape), np.nan))[place] = measured
            advanced(1, "")
    return values


def _parameters(model: nn.Module, known: Direction) -> dict[str, nn.Parameter]:
    """Return the parameters of ``model`` by name; raises GradscopeError unless their names are those of ``known``."""
    parameters = dict(model.named_parameters())
    if changed := sorted(parameters.keys() ^ known.keys()):
        raise GradscopeError(f"model must keep its parameters, but has gained or lost {first_of(changed)}")
    return parameters


def sharpness(values: Tensor, centre: Tensor, axes: tuple[Tensor, Tensor]) -> Tensor:
    """Compute the largest value of grids ``(..., A, B)`` within 1 of the origin, minus ``centre`` ``(...)``.

    NaN if no grid point other than the origin is that near.
    """
    squares = axes[0][:, None].square() + axes[1][None, :].square()
    near = squares <= 1 + 1e-9
    if not bool((near & (squares > 0)).any()):
        return centre * torch.nan
    inside = torch.where(near.to(values.device), values, -torch.inf).flatten(-2)
    largest = torch.maximum(inside.amax(dim=-1), centre.to(inside))
    return largest - centre


class Measures:
    """Measures loss and accuracy over the same images at every point of a plane.

    Sums are kept for :data:`GROUPS` groups of images, image i in group i modulo their number. They give a jackknife of
    any number computed from the plane; see :meth:`leave_one_out`.
    """

    def __init__(
        self,
        images: ImageSet,
        numbers: Tensor,
        device: torch.device,
        *,
        attack: PGD | None = None,
        seed: int = 0,
        reestimate: Sequence[Tensor] = (),
        custom: "Custom | None" = None,
        batch_size: int | None = None,
    ) -> None:
        """``attack`` runs again at every point, from the same first points.

        ``reestimate`` are batches of images on which batch norm's statistics are re-estimated at every point.
        ``custom`` is a further metric.
        """
        self.count = len(images)
        self.groups = min(GROUPS, self.count)
        self.attack, self.reestimate, self.custom = attack, reestimate, custom
        self.size = batch_size or IMAGES_AT_ONCE.get(device.type, 256)
        self.batches: list[_Batch] = []
        for indices, batch, labels in images.batches(self.size, device):
            batch = laid_out(batch)
            start = None
            if attack is not None:
                start = batch.double() if attack.precision == "float64" else batch
                start = Streams(seed, numbers[indices]).start(start, attack)
            self.batches.append((batch, labels, start))
        self.labels = torch.cat([labels for _, labels, _ in self.batches])
        groups = torch.arange(self.count) % self.groups
        self.in_group = (groups == torch.arange(self.groups)[:, None]).to(device)
        self.group_sizes = torch.bincount(groups, minlength=self.groups).double()

    def __call__(self, model: nn.Module) -> dict[str, Tensor | float]:
        """Sum ``loss`` and ``right`` over each group, ``(G,)``; also ``adversarial_...`` and ``custom`` if requested.

        If memory runs out, batches are halved for this point and all later ones.
        """

        def measure(size: int) -> dict[str, Tensor | float]:
            self.size = size
            return self._measure(model)

        return halving(measure, self.size)

    def _measure(self, model: nn.Module) -> dict[str, Tensor | float]:
        if self.reestimate:
            reestimate_batch_norm(model, self.reestimate)
        values = self._sums("", torch.cat([model(batch) for batch, _, _ in self._batches()]))
        if self.attack is not None:
            with prepared(model, self.attack) as attacked:
                points = (
                    pgd(attacked, batch.to(start), labels, self.attack, start=start).points
                    for batch, labels, start in self._batches()
                )
                values |= self._sums("adversarial_", torch.cat([attacked(batch) for batch in points]))
        if self.custom is not None:
            values["custom"] = self.custom(model)
        return values

    def _batches(self) -> Iterator[_Batch]:
        """Yield the batches, of at most :attr:`size` images each."""
        for images, labels, start in self.batches:
            for at in range(0, len(labels), self.size):
                part = slice(at, at + self.size)
                yield images[part], labels[part], None if start is None else start[part]

    def _sums(self, prefix: str, logits: Tensor) -> dict[str, Tensor | float]:
        """Sum the loss of ``logits`` ``(count, K)`` and the number of right predictions over each group."""
        terms = {"loss": cross_entropy(logits, self.labels), "right": logits.argmax(dim=1) == self.labels}
        # Not index_add_, because CUDA adds in an order that changes from run to run.
        return {
            prefix + name: torch.where(self.in_group, values.double(), 0.0).sum(dim=1).cpu()
            for name, values in terms.items()
        }

    def mean(self, sums: Tensor) -> Tensor:
        """Convert sums ``(..., G)`` to the mean over all images ``(...)``."""
        return sums.sum(dim=-1) / self.count

    def leave_one_out(self, sums: Tensor) -> Tensor:
        """Convert sums ``(..., G)`` to the means over all images except one group, ``(G, ...)``."""
        means = (sums.sum(dim=-1, keepdim=True) - sums) / (self.count - self.group_sizes)
        return means.movedim(-1, 0)


class Custom:
    """Wraps a metric object of loss_landscapes as a measure; if it fails, the value is NaN and the error is kept."""

    def __init__(self, metric: Callable[[object], object]) -> None:
        self.metric = metric
        self.failures: list[str] = []

    def __call__(self, model: nn.Module) -> float:
        """Compute the metric's value, a number, for ``model``."""
        from loss_landscapes.model_interface.model_wrapper import wrap_model

        # A metric may change its model, so it gets a copy; its random numbers are the same at every point.
        twin = copied(model)
        try:
            with torch.enable_grad(), seeded(0, "metric"):
                wrapped = wrap_model(twin)
                twin.requires_grad_(True)
                return float(self.metric(wrapped))  # type: ignore[arg-type]  # TypeError is kept
        except Exception as error:
            self.failures.append(one_line(error))
            return math.nan


def reestimate_batch_norm(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Re-estimate the running statistics of every batch norm as means over ``batches``; the rest stays in eval mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for batch in batches if norms else ():
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
