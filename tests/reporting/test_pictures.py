"""Figures in a page: vectors as long as they are small, without the names in them as text."""

import base64
import xml.etree.ElementTree as ElementTree

import numpy as np
from matplotlib.figure import Figure

from gradscope.figures import style
from gradscope.figures.style import Drawing
from gradscope.reporting.pictures import SMALL, as_svg, picture

NAME = "</svg><script>alert(1)</script>"


def drawing(points: int) -> Drawing:
    figure = Figure(figsize=(3.4, 2))
    axes = figure.subplots()
    random = np.random.default_rng(0)
    axes.scatter(*random.normal(size=(2, points)), s=random.random(points))
    axes.set_title(NAME)
    return Drawing("name", figure, "caption", ())


def test_a_small_figure_is_a_vector_that_is_sharp_and_silent(tmp_path):
    with style.paper():
        made = picture(drawing(50), "says", tmp_path / "name.png", "./name.pdf")
    assert made.width == 449
    kind, _, content = made.address.partition(";base64,")
    assert kind == "data:image/svg+xml"
    text = base64.b64decode(content).decode()
    assert "script" not in text
    assert not [word for word in ("metadata", "DOCTYPE", "<!--") if word in text]
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert len(text) < SMALL


def test_a_large_figure_is_the_smaller_of_both(tmp_path):
    with style.paper():
        large = drawing(5000)
        style.save(large.figure, tmp_path, "name")
        path = tmp_path / "name.png"
        assert len(as_svg(large)) > SMALL
        assert (
            picture(large, "", path, "").address
            == "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
        )
        path.unlink()
        assert picture(large, "", path, "").address.startswith("data:image/svg+xml")


def test_the_same_figure_gives_the_same_bytes():
    with style.paper():
        assert as_svg(drawing(50)) == as_svg(drawing(50))
