"""Metrics of the gradients along PGD, streamed over batches.

Memory holds one batch, a few numbers per image and, for the dispersion, ten sums per step for the batch and for all
images. It grows with the number of images only by those few numbers. Values do not depend on the batch size, to
rounding, unless the attack itself divides by it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradscope.attacks.outcome import blind_images
from gradscope.attacks.pgd import Blindness, Streams, look, pgd, pgd_restarted, prepared, usual_batch_size
from gradscope.config import PGD
from gradscope.data.image_set import ImageSet
from gradscope.distributed.units import PLAIN, Values, Work
from gradscope.probes.distance import distances
from gradscope.probes.recorder import BETWEEN_ITERATES, Recorder, values_at
from gradscope.probes.streaming import Array, Directions, Moments
from gradscope.probes.surroundings import Surroundings
from gradscope.results.metrics import GRADIENT_METRICS, METRICS
from gradscope.results.stats import Interval, mean_interval, wilson_interval
from gradscope.seeding import derive, seeded

Row = dict[str, Any]

_METRICS = METRICS | GRADIENT_METRICS
#: Units of the losses that attacks maximise.
_LOSS_UNITS = {
    "cross-entropy": "nats",
    "log-odds": "nats",
    "rescaled-cross-entropy": "nats",
    "margin": "logits",
    "dlr": "1",
}


class Trajectory:
    """Measurements along one attack on one model: running sums per step, and a few numbers per image."""

    def __init__(self, settings: PGD, metrics: frozenset[str], labels: Tensor, numbers: Tensor) -> None:
        self.settings = settings
        self.metrics = metrics
        self.labels = labels
        self.numbers = numbers
        self.moments: dict[str, Moments] = {}
        self.samples: dict[tuple[str, str], Array] = {}
        self.directions = Directions(settings.steps) if "dispersion" in metrics else None
        self.added = 0

    @property
    def blind(self) -> dict[str, int]:
        """Count the images, and those for which each of GRADIENT_METRICS holds, for the manifest."""
        counted = {name.replace("-", "_"): int(np.nansum(self.samples[name, "path"])) for name in GRADIENT_METRICS}
        return {"images": len(self.labels)} | counted

    @property
    def is_complete(self) -> bool:
        """Whether all images have been added."""
        return self.added == len(self.labels)

    def state(self) -> Values:
        """Return everything added so far, for a later :meth:`restore`."""
        steps = {f"steps/{metric}": torch.from_numpy(moments.state) for metric, moments in self.moments.items()}
        samples = {f"samples/{name}/{point}": torch.from_numpy(all_) for (name, point), all_ in self.samples.items()}
        state = {"added": torch.tensor(self.added), **steps, **samples}
        if self.directions is not None:
            state["directions/sums"], state["directions/counts"] = self.directions.totals()
        return state

    def restore(self, state: Values) -> None:
        """Continue from the :meth:`state` of a trajectory of the same images; call it before anything is added."""
        self.added = int(state["added"])
        for key, value in state.items():
            kind, _, name = key.partition("/")
            if kind == "steps":
                self.moments[name] = Moments.of(value.numpy())
            elif kind == "samples":
                metric, _, point = name.partition("/")
                self.samples[metric, point] = value.numpy()
        if self.directions is not None:
            self.directions.merge(state["directions/sums"], state["directions/counts"])

    def add(self, indices: Tensor, batch: Values) -> None:
        """Add the results of :func:`_measure_batch` for the images at ``indices``."""
        for key, value in batch.items():
            kind, _, name = key.partition("/")
            if kind == "steps":
                self.moments.setdefault(name, Moments(len(value))).add(_to_numpy(value))
            elif kind == "samples":
                metric, _, point = name.partition("/")
                column = self.samples.setdefault((metric, point), np.full(len(self.labels), np.nan))
                column[indices.numpy()] = _to_numpy(value)
        if self.directions is not None:
            self.directions.merge(batch["directions/sums"], batch["directions/counts"])
        self.added += len(indices)

    def unit(self, metric: str) -> str:
        """Return the unit of ``metric`` under this attack; gradients have the unit of the attack's own loss."""
        of_loss = _LOSS_UNITS[self.settings.loss]
        of_the_attack = {"norm": f"{of_loss} per unit pixel range", "restart-spread": of_loss}
        return of_the_attack.get(metric, _METRICS[metric].unit)

    def step_rows(self, identity: Row) -> Iterator[Row]:
        """Yield the rows of ``steps.csv``: every metric at every step for which it is defined."""
        ball = self.settings.ball
        for metric, moments in self.moments.items():
            first = 1 if metric in BETWEEN_ITERATES else 0
            for position, n in enumerate(moments.n.tolist()):
                mean = float(moments.mean[position]) if n else float("nan")
                std = float(moments.std[position])
                interval = _interval(metric, mean, std, n)
                at_step = {**identity, **ball, "step": position + first, "metric": metric, "unit": self.unit(metric)}
                undefined = int(moments.undefined[position])
                yield at_step | {"mean": mean, "std": std} | _ends(interval) | {"n": n, "undefined": undefined}
        if self.directions is None:
            return
        for step in range(self.settings.steps):
            value, interval = self.directions.dispersion(step)
            n = self.directions.count(step)
            at_step = {**identity, **ball, "step": step, "metric": "dispersion", "unit": self.unit("dispersion")}
            yield at_step | {"mean": value, "std": None} | _ends(interval) | {"n": n, "undefined": len(self.labels) - n}

    def sample_rows(self, identity: Row) -> Iterator[Row]:
        """Yield the rows of ``samples.csv``: every metric at every point, for every image."""
        for (metric, point), values in self.samples.items():
            of_metric = {**identity, "metric": metric, "point": point, "unit": self.unit(metric)}
            images = zip(self.numbers.tolist(), self.labels.tolist(), values.tolist(), strict=True)
            for number, label, value in images:
                yield of_metric | {"index": number, "label": label, "value": value}

    def summary_rows(self, identity: Row) -> Iterator[Row]:
        """Yield the rows of ``summary.csv``: every metric over all images, and over the right and wrong ones."""
        identity = identity | self.settings.ball
        for (metric, point), values in self.samples.items():
            yield identity | self._over(metric, f"{point}/all", values)
            if metric == "accuracy" or point not in ("clean", "final"):
                continue
            right = self.samples["accuracy", point] == 1
            yield identity | self._over(metric, f"{point}/correct", values[right])
            yield identity | self._over(metric, f"{point}/wrong", values[~right])
        if self.directions is not None:
            value, interval = self.directions.mean_dispersion()
            whole = {"metric": "dispersion", "subset": "path/all", "unit": self.unit("dispersion"), "value": value}
            yield identity | whole | _ends(interval) | {"n": len(self.labels)}

    def _over(self, metric: str, subset: str, values: Array) -> Row:
        values = values[~np.isnan(values)]
        n = len(values)
        mean = float(values.mean()) if n else float("nan")
        std = float(values.std(ddof=1)) if n > 1 else float("nan")
        row = {"metric": metric, "subset": subset, "unit": self.unit(metric), "value": mean}
        return row | _ends(_interval(metric, mean, std, n)) | {"n": n}


def _interval(metric: str, mean: float, std: float, n: int) -> Interval:
    if metric in ("accuracy", *GRADIENT_METRICS) and n:
        return wilson_interval(round(mean * n), n)
    return mean_interval(mean, std, n).within(_METRICS[metric].low, _METRICS[metric].high)


def _ends(interval: Interval) -> Row:
    return {"ci_low": interval.low, "ci_high": interval.high}


def _to_numpy(values: Tensor) -> Array:
    array: Array = values.double().cpu().numpy()
    return array


def measure_trajectory(
    model: nn.Module,
    image_set: ImageSet,
    settings: PGD,
    metrics: frozenset[str],
    *,
    numbers: Tensor | None = None,
    work: Work = PLAIN,
    begun: Values | None = None,
    keep: Callable[[Trajectory], None] = lambda so_far: None,
) -> Trajectory:
    """Attack every image of ``image_set`` by ``settings`` and measure ``metrics`` at every step.

    ``metrics`` are names of :data:`gradscope.results.metrics.METRICS`; accuracy is always measured. ``numbers`` are the
    images' indices in the set they were taken from (0 .. N-1 if None); they name the images in the results and their
    random starts. With restarts, metrics follow the first start; the other starts attack only images not yet fooled,
    and count for the accuracy at "worst". Each batch is a unit of work, by default of :func:`usual_batch_size`; results
    are added in order. ``begun`` is the state of an interrupted trajectory. ``keep`` is called with the trajectory
    after each batch.

    A random model draws random numbers that depend on the seed and the images in the batch.
    """
    batch_size = work.batch_size or usual_batch_size(settings, work.device)
    metrics = metrics | {"accuracy"} | ({"zero"} if "sign" in metrics else frozenset())
    named = torch.arange(len(image_set)) if numbers is None else numbers
    result = Trajectory(settings, metrics, image_set.labels.cpu(), named)
    if begun is not None:
        result.restore(begun)
        work.advance(result.added, "")
    with prepared(model, settings) as attacked:

        def measure(indices: Tensor) -> Values:
            images, labels = image_set.batch(indices, work.device)
            images = images.double() if settings.precision == "float64" else images
            with seeded(work.seed, "trajectory", *named[indices].tolist()):
                return _measure_batch(attacked, images, labels, named[indices], settings, metrics, work.seed)

        batches = [part for part in torch.arange(len(image_set)).split(batch_size) if int(part[0]) >= result.added]
        units = [(_unit(work.seed, named[indices]), partial(measure, indices)) for indices in batches]
        for indices, batch in zip(batches, work.each(units), strict=True):
            result.add(indices, batch)
            keep(result)
            work.advance(len(indices), "")
    return result


def _unit(seed: int, numbers: Tensor) -> str:
    return f"trajectory-{derive(seed, *numbers.tolist()):016x}"


def _measure_batch(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    numbers: Tensor,
    settings: PGD,
    metrics: frozenset[str],
    seed: int,
) -> Values:
    """Measure a batch: ``steps/METRIC`` ``(steps, B)``, ``samples/METRIC/POINT`` ``(B,)``, and ``directions/...``.

    The last are ``sums`` and ``counts`` of :meth:`Directions.totals`, if the dispersion is requested.
    """
    of_gradients = not metrics.isdisjoint({"norm", "fosc"})
    directions = Directions(settings.steps) if "dispersion" in metrics else None
    recorder = Recorder(metrics, settings, images, labels, numbers, directions)
    streams = Streams(seed, numbers)
    seen = Blindness(len(images))
    pgd(
        model, images, labels, settings, streams=streams, observe=recorder, seen=seen, final_gradient=bool(of_gradients)
    )
    assert recorder.first is not None
    assert recorder.last is not None
    clean = recorder.first
    if settings.start != "none":
        with_gradient = of_gradients or "alignment" in metrics
        clean = look(model, images, labels, settings, gradient=with_gradient, streams=streams)
    values = {f"steps/{metric}": torch.stack(steps) for metric, steps in recorder.values.items()}
    for point, iterate in (("clean", clean), ("final", recorder.last)):
        values |= {f"samples/{metric}/{point}": value for metric, value in values_at(iterate, labels, metrics).items()}
        if "norm" in metrics:
            values[f"samples/norm/{point}"] = iterate.own_norm
        if "fosc" in metrics:
            values[f"samples/fosc/{point}"] = recorder.gap_at(iterate)
    for metric, value in distances(model, images, labels, numbers, settings, metrics, seed).items():
        values[f"samples/{metric}/clean"] = value
    assert seen.worst is not None
    blind = {metric: holds.double() for metric, holds in blind_images(seen.worst).items()}
    of_the_path = recorder.of_the_path() | blind
    values |= {f"samples/{metric}/path": value for metric, value in of_the_path.items()}
    right = recorder.always_right & (clean.logits.argmax(dim=1) == labels)
    around = Surroundings(model, images, labels, settings, streams)
    if "alignment" in metrics:
        values["samples/alignment/clean"] = around.alignment(clean)
    if "snr" in metrics:
        values["samples/snr/clean"] = around.signal_to_noise()
    others = range(1, settings.restarts)
    if not metrics.isdisjoint({"restart-spread", "restart-distance"}):
        spread = around.spread(recorder.last, others)
        values |= {f"samples/{metric}/final": spread[metric] for metric in spread.keys() & metrics}
        right &= ~spread["fooled"]
    else:
        reached = pgd_restarted(model, images, labels, settings, streams, restarts=others, standing=right)
        right &= ~reached.fooled
    values["samples/accuracy/worst"] = right.double()
    if directions is not None:
        values["directions/sums"], values["directions/counts"] = directions.totals()
    return values
