import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection

from gradscope.figures import style
from gradscope.figures.curve import draw_curves
from gradscope.results.stats import simultaneous_interval
from tests.figures.test_attack import attack_rows

N = 200


def curve_rows(checkpoint: str, mode: str, distances: "np.ndarray", norm: str = "l2") -> pd.DataFrame:
    who = {"checkpoint": checkpoint, "mode": mode, "dataset": "digits", "arch": "cnn2", "seed": 0, "attack": "fmn"}
    rows = []
    for radius in np.unique([0.0, *distances]):
        share = float((distances > radius).mean())
        low, high = simultaneous_interval(share, len(distances))
        rows.append(who | {"norm": norm, "epsilon": radius, "value": share, "ci_low": low, "ci_high": high, "n": N})
    return pd.DataFrame(rows)


def distances(scale: float) -> "np.ndarray":
    values = scale * np.random.default_rng(0).gamma(3, 0.3, N)
    return np.where(np.arange(N) < 20, 0.0, values)


def drawn(*curves: pd.DataFrame, attacks: pd.DataFrame | None = None):
    with style.paper():
        return draw_curves(pd.concat(curves), attacks)


def test_the_line_is_the_share_that_is_farther_with_its_median_marked():
    values = distances(1.0)
    (drawing,) = drawn(curve_rows("sl-0", "sl", values))
    assert drawing.name == "attacks-curve"
    axes = drawing.figure.axes[0]
    line = next(line for line in axes.lines if len(line.get_xdata()) > 5)
    radii, shares = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    for radius in (0.0, 0.4, 1.0, 1.7):
        assert shares[radii <= radius][-1] == (values > radius).mean()
    (median,) = [line for line in axes.lines if line.get_marker() == "|"]
    assert median.get_xdata()[0] == pytest.approx(np.median(values), abs=0.01)
    assert any(isinstance(found, PolyCollection) for found in axes.collections)
    assert axes.get_xlim()[1] == pytest.approx(1.04 * np.quantile(values, 0.99), rel=0.02)


def test_the_attacks_of_the_same_norm_are_points_at_their_radii():
    values = distances(1.0)
    attacks = attack_rows((("sl-0", "sl"), ("rl-0", "rl")), ("pgd", "square"), radii=(0.5, 1.0))
    curves = [curve_rows("sl-0", "sl", values), curve_rows("rl-0", "rl", 2 * values)]
    (drawing,) = drawn(*curves, attacks=attacks)
    (axes,) = drawing.figure.axes
    points = [container for container in axes.containers if len(container.lines[0].get_xdata())]
    assert [list(found.lines[0].get_xdata()) for found in points] == [[0.5, 1.0], [0.5, 1.0]]
    assert "points: robust accuracy after every attack" in drawing.caption
    (alone,) = drawn(*curves, attacks=attacks.assign(norm="linf"))
    assert "points" not in alone.caption


def test_each_norm_has_its_figure_and_a_model_that_nothing_fools_its_line():
    names = [one.name for one in drawn(*(curve_rows("a", "foreign", distances(1.0), norm) for norm in ("l2", "linf")))]
    assert names == ["attacks-curve-l2", "attacks-curve-linf"]
    (drawing,) = drawn(curve_rows("a", "foreign", np.full(N, 0.0)))
    assert drawing.figure.axes[0].get_xlim()[1] > 0
    unmoved = curve_rows("a", "foreign", np.full(N, 1.0))[:1]  # right at 0, and never wrong
    (drawing,) = drawn(unmoved)
    assert not [line for line in drawing.figure.axes[0].lines if line.get_marker() == "|"]
