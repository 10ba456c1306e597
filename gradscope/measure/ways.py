"""Ways from one checkpoint to another in weight space: directions, the training of a curve, and barriers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from gradscope.data.image_set import ImageSet
from gradscope.distributed.units import Values
from gradscope.errors import GradscopeError, first_of
from gradscope.measure.landscape import summary_row
from gradscope.measure.options import LandscapeOptions
from gradscope.measure.partial_results import PartialResults
from gradscope.models.loading import LoadedModel
from gradscope.probes.connection import bend_of, straight, train_bend
from gradscope.probes.weight_landscape import Direction, Measures, direction_towards
from gradscope.progress import progress_bar
from gradscope.results.landscape import barrier
from gradscope.results.stats import jackknife_interval

Row = dict[str, Any]

#: Updates of a curve's training per piece, and the maximum number of pieces.
_STRETCH, _MOST_STRETCHES = 100, 8


@dataclass(frozen=True)
class Curve:
    """A trained curve from a model to another: its control points, and the shares of the way to measure."""

    controls: tuple[Direction, Direction, Direction]
    axes: tuple[Tensor, Tensor]
    way: str


def direction_to(subject: LoadedModel, other: LoadedModel) -> Direction:
    """Compute the direction from the weights of ``subject`` to those of ``other``.

    Raises :class:`GradscopeError` if the architectures differ.
    """
    here, there = (_weights(end.model) for end in (subject, other))
    try:
        if extra := sorted(there.keys() - here.keys()):
            raise GradscopeError(
                f"towards must have the parameters of {subject.label}, got {other.label} with {first_of(extra)}"
            )
        return direction_towards(subject.model, there)
    except GradscopeError:
        if subject.architecture == other.architecture:
            raise
        raise GradscopeError(
            f"towards must be of the architecture of {subject.label}, {subject.architecture}, got {other.label}, "
            f"which is {other.architecture}"
        ) from None


def train_curves(
    subjects: Sequence[LoadedModel],
    other: LoadedModel,
    images: ImageSet,
    options: LandscapeOptions,
    kept: PartialResults,
) -> list[tuple[Direction, Direction, Direction]]:
    """Train a curve from each of ``subjects`` to ``other`` on ``images``, in pieces; returns the control points."""
    ends = [(_weights(subject.model), _weights(other.model)) for subject in subjects]
    states = [straight(pair) for pair in ends]
    total, shown = options.curve_updates, 0
    stretch = max(_STRETCH, math.ceil(total / _MOST_STRETCHES))
    with progress_bar("curve", total * len(subjects), "updates", visible=kept.team.is_first) as advance:

        def advanced(label: str, done: int, note: str) -> None:
            nonlocal shown
            shown += done
            advance(done, f"{label}: {note}")

        def train(position: int, state: Values, updates: range) -> Values:
            subject = subjects[position]
            return train_bend(
                *(subject.model, ends[position], images, state, updates, total),
                seed=options.seed,
                batch_statistics=options.batch_norm == "re-estimated",
                advance=partial(advanced, subject.label),
            )

        for first in range(0, total, stretch):
            updates = range(first, min(total, first + stretch))
            units = [
                (f"curve-{position}-{updates.stop}", partial(train, position, state, updates))
                for position, state in enumerate(states)
            ]
            states = list(kept.each(units))
            advance(max(0, updates.stop * len(subjects) - shown), "")
            shown = updates.stop * len(subjects)
    return [(start, bend_of(state, start), end) for (start, end), state in zip(ends, states, strict=True)]


def _weights(model: nn.Module) -> Direction:
    return {key: parameter.detach() for key, parameter in model.named_parameters()}


def barriers(identity: Row, way: str, axis: Tensor, found: Mapping[str, Tensor], measures: Measures) -> Iterator[Row]:
    """Yield the rows of SUMMARY for the barriers of loss and accuracy on a way to another checkpoint.

    ``found`` holds sums by group ``(T, 1, G)`` at the shares ``axis`` ``(T,)``.
    """
    for prefix in ("", "adversarial_"):
        ball = measures.attack.ball if prefix and measures.attack is not None else {}
        for name, metric, sign in (("loss", "loss", 1), ("right", "accuracy", -1)):
            if prefix + name in found:
                sums = sign * found[prefix + name][:, 0]
                values = (measures.mean(sums), measures.leave_one_out(sums))
                height, others = (barrier(axis.numpy(), part.numpy())[0] for part in values)
                # A height of 0 is that of the ends, where the jackknife of a maximum has no meaning.
                known = math.isfinite(height) and bool(np.isfinite(others).all()) and height > 0
                interval = jackknife_interval(float(height), others.tolist()) if known else None
                named = f"{prefix}{metric}-barrier".replace("_", "-")
                yield summary_row(identity | ball, named, f"{way}/all", float(height), interval, measures.count)
