import numpy as np
import pandas as pd
import pytest

from gradscope.figures import style
from gradscope.figures.epochs import draw_epochs
from gradscope.figures.spectrum import draw_spectra
from gradscope.results.schemas import DENSITY, EIGENVALUES, EPOCHS, SPECTRUM

WHO = {"dataset": "digits", "arch": "cnn2", "seed": 0, "attack": "none"}


def tables(largest=(100.0, 5000.0), layers=("conv", "fc"), matrices=("hessian",), space="weights"):
    """Spectra of two models, whose largest eigenvalues are ``largest``, with a block for each layer."""
    numbers, values, densities = [], [], []
    for mode, top in zip(("sl", "rl"), largest, strict=True):
        for matrix in matrices:
            who = {**WHO, "checkpoint": f"net-{mode}", "mode": mode, "space": space, "matrix": matrix}
            for layer in ("", *layers):
                known = {
                    "unit": "nats per squared unit",
                    "error": top / 50,
                    "ci_low": top / 2,
                    "ci_high": 2 * top,
                    "n": 5,
                }
                numbers.append({**who, "layer": layer, "metric": "trace", "value": top, **known})
            numbers.append({**who, "layer": "", "metric": "negative-mass", "value": 0.25, **known})
            values += [
                {**who, "layer": "", "rank": rank, "value": top / rank * (-1) ** (rank - 1), "residual": 0.1}
                for rank in (1, 2, 3)
            ]
            for at in np.linspace(-top, top, 201):
                height = np.exp(-((at / (top or 1) * 5) ** 2))
                ends = {"ci_low": 0.0, "ci_high": 2 * height}
                densities.append({**who, "layer": "", "eigenvalue": at, "density": height, **ends})
    made = zip((numbers, values, densities), (SPECTRUM, EIGENVALUES, DENSITY), strict=True)
    return [pd.DataFrame(rows, columns=table.names) for rows, table in made]


def drawn(*given, **options):
    with style.paper():
        found = {drawing.name: drawing for drawing in draw_spectra(*(given or tables(**options)))}
        for drawing in found.values():
            drawing.figure.canvas.draw()
    return found


def test_the_density_of_every_model_has_the_same_axes():
    drawing = drawn()["spectrum-density"]
    above, below = drawing.figure.axes
    assert above.get_xlim() == below.get_xlim()
    assert above.get_ylim() == below.get_ylim()
    assert above.get_yscale() == "log"
    assert above.get_xlim()[1] >= 5000
    assert [axes.get_title("left").split(":")[0] for axes in (above, below)] == ["net-sl", "net-rl"]
    assert "trace 5e+03 ± 1e+02, negative mass 25 %" in below.get_title("left")
    assert "all panels have the same axes" in drawing.caption
    assert "n = 5 random vectors" in drawing.caption


def test_the_line_and_its_ticks_are_the_numbers_of_the_tables():
    numbers, values, densities = tables()
    axes = drawn(numbers, values, densities)["spectrum-density"].figure.axes[0]
    line, ticks = axes.lines
    own = densities[densities["checkpoint"] == "net-sl"]
    np.testing.assert_allclose(line.get_xdata(), own["eigenvalue"])
    assert line.get_ydata().max() == own["density"].max()
    np.testing.assert_allclose(ticks.get_xdata(), [100.0, -50.0, 100 / 3])


def test_of_images_the_largest_are_ticks():
    numbers, values, densities = tables(layers=(), space="input")
    values = pd.concat([values.assign(index=number, value=values["value"] * number) for number in (1, 2)])
    axes = drawn(numbers, values, densities)["spectrum-density"].figure.axes[0]
    np.testing.assert_allclose(axes.lines[1].get_xdata(), [100.0, 200.0])


def test_two_matrices_share_a_panel_and_layers_have_a_figure_each():
    found = drawn(matrices=("hessian", "gauss-newton"))
    assert list(found) == ["spectrum-density", "spectrum-layers-hessian", "spectrum-layers-gauss-newton"]
    assert len(found["spectrum-density"].figure.axes[0].lines) == 4
    assert [text.get_text() for text in found["spectrum-density"].figure.legends[0].get_texts()] == [
        *("Hessian", "Gauss-Newton matrix", "largest eigenvalues")
    ]


def test_layers_have_the_networks_order_and_their_interval():
    drawing = drawn()["spectrum-layers"]
    (axes,) = drawing.figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["conv", "fc"]
    assert axes.yaxis_inverted()
    assert axes.get_xscale() == "symlog", "50 times as large"


def test_the_legend_stays_inside():
    for drawing in drawn(matrices=("hessian", "gauss-newton")).values():
        (legend,) = drawing.figure.legends
        box = legend.get_window_extent()
        assert box.x0 >= -1
        assert box.x1 <= drawing.figure.bbox.x1 + 1


@pytest.mark.parametrize("largest", [(0.0, 0.0), (1e-9, 1e9)])
def test_flat_and_far_apart_spectra_are_drawn(largest):
    assert "spectrum-density" in drawn(largest=largest, layers=())


def test_the_caption_of_input_space_counts_images():
    found = drawn(layers=(), space="input")
    assert list(found) == ["spectrum-density"]
    assert "over n = 5 images" in found["spectrum-density"].caption


def epochs(count=4, attack="pgd"):
    rows = []
    for epoch in range(count):
        who = {**WHO, "checkpoint": "sl", "mode": "sl", "epoch": epoch}
        values = {"eigenvalue": 10.0 + epoch, "trace": 1000.0 * 2**epoch, "accuracy": epoch / count}
        for metric, value in values.items():
            ends = {"ci_low": value * 0.9, "ci_high": value * 1.1} if metric != "eigenvalue" else {}
            rows.append({**who, "metric": metric, "unit": "-", "value": value, "n": 9, **ends})
        rows.append({**who, "attack": attack, "metric": "accuracy", "unit": "-", "value": 0.1, "n": 9})
    return pd.DataFrame(rows, columns=EPOCHS.names)


def test_sharpness_and_accuracies_lie_above_each_other():
    with style.paper():
        drawing = draw_epochs(epochs())
        drawing.figure.canvas.draw()
    *above, below = drawing.figure.axes
    eigenvalue, trace = (axes.lines[0] for axes in above)
    assert list(eigenvalue.get_ydata()) == [10, 11, 12, 13]
    assert list(trace.get_ydata()) == [1000, 2000, 4000, 8000]
    assert all(axes.get_ylim()[0] == 0 for axes in above)
    clean, attacked = below.lines
    assert list(clean.get_ydata()) == [0, 0.25, 0.5, 0.75]
    assert set(attacked.get_ydata()) == {0.1}
    assert drawing.attacks == ("pgd",)
    assert [text.get_text() for text in drawing.figure.legends[0].get_texts()] == ["clean", "under pgd"]
