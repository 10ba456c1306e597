"""Infer how an attack on trial works from the record of its run, and choose repairs to try, one part each."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradscope.attacks.threat import ThreatModel
from gradscope.config import StepSize
from gradscope.distributed.units import Values
from gradscope.functional import fooled, margin, per_sample
from gradscope.judging.attacks import Attack, Batch
from gradscope.judging.recording import KNOWN, NOTHING, Change, Watch, leaves_ball, leaves_box

Part = Literal[
    "loss",
    "reduction",
    "batch",
    "norm floor",
    "precision",
    "step size",
    "steps",
    "projection",
    "box",
    "random start",
    "best iterate",
    "train mode",
    "normalisation",
]
#: Two losses count as the same if their gradients in the logits have at least this cosine on at least this share of
#: images.
_SAME, _ON_IMAGES = 0.999, 0.1
#: Below the first cosine the loss or its labels differ; a rounded cross-entropy has at least the second with itself.
_LIKE, _ROUNDED = 0.95, 0.6
#: A step is short if it is less than this share of the usual one.
_SHORT = 0.5
#: If at least this share of images has short steps, short steps are the usual ones and the step size is unknown.
_MOST = 0.5
#: Largest ratio of two step sizes that count as equal.
_ALIKE = 1.5
#: Fewest steps that show whether step lengths are proportional to the gradient.
_FEWEST_RATES = 10
#: If scale - 1, or the shift, of the points exceeds this, the attack feeds the model normalised images.
_APART = 0.3
#: Most successive calls of an attack.
_MOST_CALLS = 20


@dataclass(frozen=True)
class Reading:
    """How an attack works, as inferred from its run; None where that is unknown.

    ``direction``: 1 if it moves up the gradient that it sees, -1 if down. ``ascends``: whether it increases the
    ``loss``. ``step_size``: the largest of the images' median step lengths, pixel units. ``short``: share of images
    whose median step is shorter than half of that. ``floor``: the gradient norm below which steps are short.
    ``proportional``: whether all step lengths are proportional to the gradient; then there is no floor. ``still``:
    whether all gradients were taken at one point although the examples lie elsewhere. ``scale``, ``shift`` ``(C,)``:
    the model was given ``scale * x + shift``. ``tight``: radius of a ball smaller than epsilon on whose surface most
    examples lie.
    """

    steps: int
    direction: int
    loss: str | None
    ascends: bool | None
    reduction: str | None
    step_size: float | None
    short: float
    floor: float | None
    proportional: bool
    still: bool
    random_start: bool | None
    trained: bool
    low_precision: bool
    zero_gradient: float
    scale: Tensor | None
    shift: Tensor | None
    tight: float | None

    @property
    def scale_matters(self) -> bool:
        """Whether the length of gradients may matter to the attack: some of its steps are short."""
        return self.short > 0

    def to_json(self) -> dict[str, Any]:
        """Return what is known, for the manifest."""
        return {
            "steps": self.steps,
            "step_size": self.step_size,
            "loss": None if self.loss is None else f"{'' if self.ascends else 'minus '}{self.loss}",
            "reduction": self.reduction,
            "random_start": self.random_start,
            "train_mode": self.trained,
            "low_precision": self.low_precision,
            "short_steps": self.short,
            "norm_floor": self.floor,
            "steps_as_gradient": self.proportional,
            "at_one_point": self.still,
            "zero_gradient": self.zero_gradient,
            "normalised_outside": self.scale is not None,
            "ball": self.tight,
        }


@dataclass(frozen=True)
class Repair:
    """A repair of one part of an attack, by a ``change`` between attack and model or by the attack's own ``settings``.

    ``words`` name it. ``of`` names a value of the unchanged run that already says which images the repair would fool;
    the attack does not run again then. ``alone``: the attack gets one image at a time.
    """

    part: Part
    words: str
    change: Change = NOTHING
    settings: Mapping[str, Any] = field(default_factory=dict)
    of: str = ""
    alone: bool = False


def read(values: Values, batch_size: int, threat: ThreatModel, attack: Attack) -> Reading:
    """Infer how the attack works from the values of :func:`run_as_it_is` over all images."""
    steps = int(values["steps"].double().median())
    length = values["length"][values["length"].isfinite()]
    usual = float(length.max()) if len(length) else 0.0
    short = values["length"] < _SHORT * usual
    shares = values["share"][short & (values["share"] > 0)]
    direction = -1 if float(values["upward"].sum()) < 0 else 1
    loss, ascends, reduction = _loss(values, batch_size, direction)
    reach = values["distance"]
    widest = float(reach.max())
    at_the_surface = float((reach > 0.98 * widest).double().mean())
    tight = (
        widest if 0 < widest < 0.95 * threat.epsilon and at_the_surface > 0.5 and usual * steps > 1.2 * widest else None
    )
    proportional = _proportional(values["norms"].flatten(), values["rates"].flatten())
    left_behind = float((values["away"] > 0.01 * threat.epsilon).double().mean()) > _ON_IMAGES
    scale, shift = values["scale"].median(dim=0).values, values["shift"].median(dim=0).values
    apart = bool(((scale - 1).abs() > _APART).any() or (shift.abs() > _APART).any()) and bool(scale.isfinite().all())
    first = values["first_distance"][values["first_distance"].isfinite()]
    return Reading(
        steps,
        direction,
        loss,
        ascends,
        reduction,
        usual if usual and float(short.double().mean()) < _MOST else None,
        float(short.double().mean()),
        usual / float(shares.median()) if len(shares) and not proportional else None,
        proportional,
        steps > 1 and bool(values["still"].all()) and left_behind,
        bool((first > 1e-3 * threat.epsilon).double().mean() > 0.5) if len(first) else None,
        bool(values["trained"].any()),
        bool(values["low_precision"].any()),
        float(values["zero_gradient"].double().mean()),
        scale if apart else None,
        shift if apart else None,
        tight,
    )


def _proportional(norms: Tensor, rates: Tensor) -> bool:
    """Tell whether the ratio of step length to gradient norm is the same for long and for short gradients."""
    known = rates.isfinite() & (norms > 0)
    norms, rates = norms[known], rates[known]
    if len(norms) < _FEWEST_RATES:
        return False
    order = norms.argsort()
    few = max(len(order) // 10, 1)
    long, short = order[-few:], order[: len(order) // 2]
    differ = float(norms[long].median() / norms[short].median())
    return differ > 2 * _ALIKE and 1 / _ALIKE < float(rates[long].median() / rates[short].median()) < _ALIKE


def follows_others(values: Values) -> bool:
    """Tell whether the gradients in the logits mostly resemble no known loss of the given labels.

    A saturated cross-entropy is rounded and resembles itself less, so a smaller cosine suffices for that loss. The sign
    of its cosine matters, because an attack that increases the cross-entropy of another label moves the other way.
    """
    cosine = values["cosine"].nan_to_num(0.0)
    seen = values["ratio"].nan_to_num(0.0).any(dim=1)
    other = (cosine.abs().amax(dim=1) < _LIKE) & (cosine[:, KNOWN.index("cross-entropy")] < _ROUNDED)
    return bool(seen.any()) and float(other[seen].double().mean()) > 0.5


def _loss(values: Values, batch_size: int, direction: int) -> tuple[str | None, bool | None, str | None]:
    """Identify the attack's loss by its gradient in the logits, whether the attack increases it, and its reduction.

    Of losses with the same direction, such as cross-entropy and log-odds, choose the one whose gradient norms are
    proportional to the attack's.
    """
    if follows_others(values):
        return None, None, None
    best: tuple[float, str, float, float] | None = None
    for place, name in enumerate(KNOWN):
        cosine, ratio = values["cosine"][:, place], values["ratio"][:, place]
        same = (cosine.abs() > _SAME) & ratio.isfinite() & (ratio > 0)
        if float(same.double().mean()) < _ON_IMAGES:
            continue
        logarithms = ratio[same].log()
        spread = float(logarithms.std(unbiased=False))
        if best is None or spread < best[0] - 1e-6:
            best = spread, name, float(cosine[same].median()), float(logarithms.median().exp())
    if best is None or best[0] > 0.5:
        return None, None, None
    _, name, sign, ratio_ = best
    reduction = "sum" if math.isclose(ratio_, 1, rel_tol=0.1) else None
    reduction = "mean" if batch_size > 1 and math.isclose(ratio_ * batch_size, 1, rel_tol=0.1) else reduction
    return name, sign * direction > 0, reduction


def repairs_of(reading: Reading, attack: Attack, threat: ThreatModel, steps: int, batch_size: int) -> list[Repair]:
    """List the repairs that may help an attack with this ``reading``; ``steps`` is the number of our steps."""
    sign, shown = reading.direction, attack.shown
    repairs = [
        Repair("loss", f"up the gradient of the {name} loss", Change(loss=name, sign=sign))
        for name in ("log-odds", "margin")
        if not (name == reading.loss and reading.ascends)
    ]
    if reading.scale_matters and reading.reduction == "mean":
        repairs.append(Repair("reduction", "with the loss summed over the batch", Change(summed=True)))
    if batch_size > 1:  # keep the division by the batch size: that is the reduction's repair
        weight = 1 / batch_size if reading.reduction == "mean" else 1.0
        repairs.append(Repair("batch", "given one image at a time", Change(weight=weight), alone=True))
    if reading.scale_matters and reading.proportional:
        repairs.append(Repair("norm floor", "with each gradient normalised", Change(unit=True)))
    elif reading.scale_matters:
        repairs.append(Repair("norm floor", "with the norm floor removed", Change(long=True)))
    repairs.append(Repair("precision", "in float64", Change(precise=True)))
    if reading.steps and reading.tight is None and reading.scale is None:  # otherwise the path lies in another ball
        repairs += _walks(reading, shown, threat, steps)
    if reading.tight is not None:
        repairs.append(Repair("projection", "stretched to the ball's surface", of="stretched"))
    repairs.append(Repair("best iterate", "kept at the first iterate that fooled", of="best"))
    if reading.trained:
        repairs.append(Repair("train mode", "with the model in evaluation mode", Change(evaluating=True)))
    if reading.scale is not None and reading.shift is not None:
        scale, shift = (values.reshape(-1, 1, 1).float() for values in (reading.scale, reading.shift))
        repairs.append(
            Repair("normalisation", "without normalising the model's input", Change(scale=scale, shift=shift))
        )
    return repairs


def _walks(reading: Reading, shown: Mapping[str, Any], threat: ThreatModel, steps: int) -> list[Repair]:
    """List repairs of step size, steps and start, by the attack's own settings if readable, else by a change."""
    repairs = []
    wanted = min(StepSize().at(threat.epsilon, reading.steps), threat.epsilon)
    if reading.step_size is not None and not 1 / _ALIKE < wanted / reading.step_size < _ALIKE:
        words = f"with steps of {wanted:.3g}, not {reading.step_size:.3g},"
        if "step size" in shown:
            repairs.append(Repair("step size", words, settings={"step size": wanted}))
        elif wanted > reading.step_size:
            repairs.append(Repair("step size", words, Change(stretch=wanted / reading.step_size)))
        else:
            repairs.append(Repair("step size", words, Change(step_size=wanted, sign=reading.direction)))
    if reading.still:
        change = Change(step_size=wanted, sign=reading.direction)
        repairs.append(Repair("steps", "with every gradient taken where the last step led", change))
    elif isinstance(shown.get("steps", ("", None))[1], int):
        more = max(4 * shown["steps"][1], steps)
        repairs.append(Repair("steps", f"with {more} steps", settings={"steps": more}))
    else:
        calls = min(max(math.ceil(steps / reading.steps), 2), _MOST_CALLS)
        times = "twice" if calls == 2 else f"{calls} times"
        repairs.append(Repair("steps", f"called {times}, going on from where it ended,", Change(calls=calls)))
    if reading.random_start is False:
        if shown.get("random start", ("", None))[1] is False:
            repairs.append(Repair("random start", "from a random start", settings={"random start": True}))
        else:
            repairs.append(Repair("random start", "from a random start", Change(random_start=True)))
    return repairs


def run_as_it_is(attack: Attack, watch: Watch, batch: Batch) -> tuple[Tensor, Values]:
    """Run the attack unchanged; return its examples, and the values recorded for each image ``(N, ...)``."""
    returned, reported = attack(watch, batch, {})
    kind = returned.dtype
    examples = returned.to(batch.images)
    watch.reached(examples)
    images, threat = batch.images, batch.threat
    finite = examples.isfinite().flatten(1).all(dim=1)
    distance = threat.distance(torch.where(per_sample(finite, examples), examples, images), images).double()
    scale, shift = _affine(images, watch.first_point)
    count = len(images)
    says = torch.full((count,), -1, dtype=torch.int64)
    labelled = says if reported is None or reported.dtype == torch.bool else reported.long()
    if reported is not None and labelled is says:
        says = reported.long()
    return examples, {
        "leaves_ball": finite & leaves_ball(examples, images, batch, kind),
        "leaves_box": finite & leaves_box(examples, kind),
        "broken": ~finite,
        "distance": distance,
        "says": says,
        "labelled": labelled,
        "steps": watch.steps,
        "still": watch.still,
        "away": threat.distance(torch.where(per_sample(finite, examples), examples, images), watch.first_point),
        "upward": watch.upward,
        "first_distance": watch.first_distance,
        "trained": watch.trained,
        "low_precision": watch.low_precision,
        "zero_gradient": watch.zero_gradient,
        "cosine": watch.cosine,
        "ratio": watch.ratio,
        "scale": scale.expand(count, -1),
        "shift": shift.expand(count, -1),
        **watch.walk,
    }


def run_repaired(attack: Attack, model: nn.Module, watch: Watch, batch: Batch, repair: Repair) -> Tensor:
    """Run the attack with one part repaired; return its examples ``(N, C, H, W)``.

    If the repair makes several calls, keep for each image a point that fools ``model``, else the one of lowest margin.
    Each call continues from these points, so that no call loses an earlier success.
    """
    best, lowest = batch.images, torch.full((len(batch.images),), torch.inf, device=batch.images.device)
    for call in range(repair.change.calls):
        if call:
            watch.again(best)
        returned, _ = attack(watch, batch, repair.settings)
        points = watch.reached(returned.to(batch.images)).clone()
        if repair.change.calls == 1:
            return points
        points = batch.threat.project(torch.where(points.isfinite(), points, batch.images), batch.images)
        with torch.no_grad():
            logits = model(points)
        reached = torch.where(fooled(logits, batch.labels), -torch.inf, margin(logits, batch.labels).nan_to_num())
        better = reached < lowest
        best, lowest = torch.where(per_sample(better, points), points, best), torch.minimum(reached, lowest)
    return best


def _affine(images: Tensor, fed: Tensor) -> tuple[Tensor, Tensor]:
    """Fit ``fed = scale * images + shift`` per channel by least squares; returns ``scale`` and ``shift``, ``(1, C)``.

    1 and 0 where the fit explains less than half of the variance, or the channel does not vary.
    """
    x, y = (values.double().transpose(0, 1).flatten(1) for values in (images, fed))
    mean_x, mean_y = x.mean(dim=1), y.mean(dim=1)
    covariance = ((x - mean_x[:, None]) * (y - mean_y[:, None])).mean(dim=1)
    variance_x, variance_y = x.var(dim=1, unbiased=False), y.var(dim=1, unbiased=False)
    scale = covariance / variance_x
    explained = covariance.square() / (variance_x * variance_y)
    line = scale.isfinite() & (explained > 0.5)
    shift = mean_y - scale * mean_x
    return torch.where(line, scale, 1.0)[None], torch.where(line, shift, 0.0)[None]


def stretched(examples: Tensor, batch: Batch) -> Tensor:
    """Scale the perturbations of ``examples`` so that the largest reaches the ball's surface."""
    farthest = batch.threat.distance(examples, batch.images).max().clamp(min=1e-12)
    return batch.images + (examples - batch.images) * (batch.threat.epsilon / farthest)


def judged(model: nn.Module, examples: Tensor, batch: Batch) -> Tensor:
    """Mark the images ``(N,)`` that the model gets wrong at ``examples``, after projection into ball and box."""
    with torch.no_grad():
        return fooled(model(inside(examples, batch)), batch.labels)


def inside(examples: Tensor, batch: Batch) -> Tensor:
    """Project ``examples`` into ball and box; the clean image replaces an example that is not finite."""
    return batch.threat.project(torch.where(examples.isfinite(), examples, batch.images), batch.images)
