"""Effects over images and seeds: the difference of two models on the same images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gradscope.claims.measured import KINDS, Measured, Values
from gradscope.results.stats import (
    UNDEFINED,
    Interval,
    jackknife_interval,
    mcnemar,
    mean_interval,
    mean_test,
    median_interval,
    newcombe_interval,
    paired_rates_interval,
    paired_rates_score,
)

Array = NDArray[np.float64]
#: rate: difference of shares of images. mean: of means over images. median: median over images of the difference.
Scale = Literal["rate", "mean", "median"]
Pair = tuple[Values, Values]
_GROUPS = 10


@dataclass(frozen=True)
class Effect:
    """A measured difference. ``levels``: the two values it is the difference of. ``seeds``: the effect at each seed.

    ``p_value`` is None if there is no test. ``undefined`` images, on which the difference is undefined, are not counted
    in ``n``. ``scale`` determines the interval over seeds: rates are clipped to [-1, 1], ratios use logarithms.
    """

    value: float
    interval: Interval
    seeds: tuple[float, ...]
    p_value: float | None
    n: int
    undefined: int = 0
    levels: tuple[float, float] | None = None
    scale: Scale | Literal["ratio"] = "mean"

    @property
    def over_seeds(self) -> Interval:
        """Student t interval of the mean over seeds (geometric mean for ratios); undefined with fewer than two."""
        if len(self.seeds) < 2 or not np.isfinite(self.seeds).all():
            return UNDEFINED
        seeds = np.log(self.seeds) if self.scale == "ratio" else np.asarray(self.seeds)
        interval = mean_interval(float(np.mean(seeds)), float(np.std(seeds, ddof=1)), len(seeds))
        if self.scale == "ratio":
            return Interval(math.exp(interval.low), math.exp(interval.high))
        return interval.within(-1, 1) if self.scale == "rate" else interval


def matched(
    ones: Mapping[int, Sequence[Measured]], others: Mapping[int, Sequence[Measured]]
) -> dict[int, tuple[Measured, Measured]]:
    """Match, for each seed, one measurement of each model, made in the same way on the same images.

    Of several ways it takes the one that most seeds have, then the one closest to the paper's, then the one with most
    images. Empty if there is none.
    """
    ways: dict[tuple[object, ...], dict[int, tuple[Measured, Measured]]] = {}
    for seed in sorted(ones.keys() & others.keys()):
        for first in ones[seed]:
            for second in others[seed]:
                way = (first.kind, first.attack, first.ball, first.settings)
                if way == (second.kind, second.attack, second.ball, second.settings) and len(shared([first, second])):
                    ways.setdefault(way, {}).setdefault(seed, (first, second))

    def rank(way: tuple[object, ...]) -> tuple[int, int, int]:
        pairs = ways[way].values()
        return -len(pairs), KINDS.index(str(way[0])), -min(len(shared(pair)) for pair in pairs)

    return ways[min(ways, key=rank)] if ways else {}


def shared(measured: Sequence[Measured]) -> "pd.Index[int]":
    """Find the images that all of ``measured`` have; none if labels differ, because the test sets then differ."""
    index = measured[0].of_images.index
    for entry in measured[1:]:
        index = index.intersection(entry.of_images.index)
    first = measured[0].labels.reindex(index)
    agree = all((entry.labels.reindex(index) == first).all() for entry in measured[1:])
    return index.sort_values() if agree else index[:0]


def paired(pairs: Sequence[tuple[Measured, Measured]]) -> list[Pair]:
    """Take the values of each seed's pair on the images that all seeds have."""
    index = shared([first for pair in pairs for first in pair])
    return [(first.of_images.reindex(index), second.of_images.reindex(index)) for first, second in pairs]


def difference(pairs: Sequence[Pair], scale: Scale, bound: float = 0.0) -> Effect:
    """Compute the first minus the second of each pair, one pair per seed, paired by image; test against ``bound``.

    Rates of one seed: Tango's interval; McNemar's exact test if ``bound`` is 0, else Tango's. Means, and rates of
    several seeds: Student's t on each image's mean over the seeds, so that images stay the independent units. Medians:
    the median of each image's mean over the seeds, with an interval between order statistics and the sign test. An
    image whose difference is undefined at any seed is left out.
    """
    differences = np.stack([_minus(*pair) for pair in pairs])
    with np.errstate(invalid="ignore"):
        over_seeds = differences.mean(axis=0)
    defined = ~np.isnan(over_seeds) if scale == "median" else np.isfinite(over_seeds)
    kept = differences[:, defined]
    n = kept.shape[1]
    sides = ([pair[side].to_numpy(dtype=float)[defined] for pair in pairs] for side in (0, 1))
    first_level, second_level = (_level(values, scale) for values in sides)
    if n == 0:
        return Effect(math.nan, UNDEFINED, (), None, 0, len(defined))
    centre = np.median if scale == "median" else np.mean
    image = kept.mean(axis=0)
    seeds = tuple(float(centre(row)) for row in kept)
    if scale == "rate" and len(pairs) == 1:
        first, second = int((kept[0] > 0).sum()), int((kept[0] < 0).sum())
        interval = paired_rates_interval(first, second, n)
        p = mcnemar(first, second) if bound == 0 else paired_rates_score(first, second, n, bound)
    elif scale == "median":
        interval = median_interval(image.tolist())
        p = mcnemar(int((image > bound).sum()), int((image < bound).sum()))
    else:
        mean, std = float(image.mean()), float(image.std(ddof=1)) if n > 1 else math.nan
        interval = mean_interval(mean, std, n)
        interval = interval.within(-1, 1) if scale == "rate" else interval
        p = mean_test(mean, std, n, bound)
    undefined = int((~defined).sum())
    p_value = None if math.isnan(p) else p
    return Effect(float(centre(image)), interval, seeds, p_value, n, undefined, (first_level, second_level), scale)


def _minus(first: Values, second: Values) -> Array:
    """Subtract ``other`` from ``one``; NaN if both are the same infinity."""
    with np.errstate(invalid="ignore"):
        result: Array = first.to_numpy(dtype=float) - second.to_numpy(dtype=float)
    return result


def _level(values: Sequence[Array], scale: Scale) -> float:
    together = np.concatenate(values)
    if not len(together):
        return math.nan
    return float(np.median(together) if scale == "median" else np.mean(together))


def between_groups(seeds: Sequence[tuple[Array, Array]]) -> Effect:
    """Compute the share of images with ``holds`` among the members of a group, minus the share among the others.

    ``seeds`` has one pair ``(holds, member)`` of 0/1 arrays per seed, over the same images; an image with NaN in
    ``member`` is in neither group. There is an interval but no test. One seed: Newcombe's interval. Several seeds: the
    pooled shares, with a delete-a-group jackknife over ten groups of images.
    """
    holds = np.stack([held for held, _ in seeds])
    member = np.stack([group for _, group in seeds])
    n = int((~np.isnan(member)).any(axis=0).sum())
    shares = _group_shares(holds, member)
    value = shares[0] - shares[1]
    of_seed = tuple(_minus_others(_group_shares(holds[[at]], member[[at]])) for at in range(len(seeds)))
    if math.isnan(value):
        return Effect(math.nan, UNDEFINED, (), None, n, levels=shares)
    if len(seeds) == 1:
        inside, outside = holds[member == 1], holds[member == 0]
        interval = newcombe_interval(int(inside.sum()), len(inside), int(outside.sum()), len(outside))
    else:
        images = np.arange(holds.shape[1])
        left_out = [
            _minus_others(_group_shares(holds[:, images % _GROUPS != group], member[:, images % _GROUPS != group]))
            for group in range(_GROUPS)
        ]
        interval = UNDEFINED if np.isnan(left_out).any() else jackknife_interval(value, left_out).within(-1, 1)
    defined = tuple(effect for effect in of_seed if not math.isnan(effect))
    return Effect(value, interval, defined, None, n, levels=shares, scale="rate")


def _group_shares(holds: Array, member: Array) -> tuple[float, float]:
    groups = [holds[member == which] for which in (1, 0)]
    inside, outside = (float(group.mean()) if len(group) else math.nan for group in groups)
    return inside, outside


def _minus_others(shares: tuple[float, float]) -> float:
    return shares[0] - shares[1]
