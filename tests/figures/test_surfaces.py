import base64
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gradscope
from gradscope.errors import GradscopeError
from gradscope.figures.landscape import MOST_IMAGES
from gradscope.figures.surfaces import MOST_SCENES, MOST_VALUES, write_surfaces
from gradscope.results.schemas import LANDSCAPE

SETTINGS = {
    "seed": 7,
    "epsilon": 0.5,
    "axes": [{"name": "adversarial direction", "unit": "multiples of epsilon"}, {"name": "random <b>&direction"}],
}
NAMES = ("sl-0", "rl-0")
HOSTILE = "<b>x</b>&y</script><script>alert(1)</script>"


def identity(checkpoint):
    names = {"checkpoint": checkpoint, "mode": "sl", "dataset": "digits", "arch": "small-cnn"}
    return names | {"seed": 0, "attack": "pgd"}


def around_images(names=NAMES, *, images=3, points=5):
    a, b = (grid.ravel() for grid in np.meshgrid(np.linspace(-3, 3, points), np.linspace(-2, 2, points), indexing="ij"))
    tables = [
        pd.DataFrame(
            identity(name)
            | {"space": "input", "index": 10 + number, "label": 3, "a": a, "b": b}
            | {"loss": (1 + rank) * (a**2 + 0.1 * b + 0.3 + number), "margin": 1.0, "predicted": 3}
        )
        for rank, name in enumerate(names)
        for number in range(images)
    ]
    return pd.concat(tables, ignore_index=True).reindex(columns=LANDSCAPE.names)


def around_weights(names=NAMES):
    a, b = (grid.ravel() for grid in np.meshgrid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 5), indexing="ij"))
    values = {"loss": a**2 + b**2, "accuracy": 0.5 + 0.1 * a, "custom": np.where(a > 0.5, np.nan, b)}
    tables = [pd.DataFrame(identity(name) | {"space": "weights", "a": a, "b": b} | values) for name in names]
    return pd.concat(tables, ignore_index=True).reindex(columns=LANDSCAPE.names)


def page(tmp_path, landscape, settings=SETTINGS):
    path = tmp_path / "figures" / "landscape-3d.html"
    write_surfaces(landscape, settings, path)
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    return path.read_text()


def payload(text):
    (found,) = re.findall(r'<script type="application/json" id="landscape">(.*?)</script>', text, re.S)
    return json.loads(found)


def values(plane):
    shape = (len(plane["b"]), len(plane["a"]))
    return np.frombuffer(base64.b64decode(plane["values"]), "<f4").reshape(shape)


class Tags(HTMLParser):
    """Every tag outside of scripts, with its attributes."""

    def __init__(self):
        super().__init__()
        self.tags, self.texts = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


def test_every_value_is_on_the_page(tmp_path):
    landscape = around_images()
    found = payload(page(tmp_path, landscape))
    assert found["scenes"] == ["sl-0", "rl-0"]
    assert [view["name"] for view in found["views"]] == [
        *("median over images", "image 10, class 3", "image 11, class 3", "image 12, class 3")
    ]
    for index, view in zip((None, 10, 11, 12), found["views"], strict=True):
        for name, plane in zip(found["scenes"], view["planes"], strict=True):
            rows = landscape[(landscape["checkpoint"] == name) & (landscape["index"] == (index or 11))]
            grid = rows.pivot_table(index="b", columns="a", values="loss")
            assert_array_equal(plane["a"], grid.columns)
            assert_array_equal(plane["b"], grid.index)
            assert_allclose(values(plane), grid, rtol=1e-6)


def test_all_surfaces_share_a_scale_that_holds_them(tmp_path):
    for view in payload(page(tmp_path, around_images()))["views"]:
        low, high = view["ends"]
        assert all((values(plane) >= low).all() and (values(plane) <= high).all() for plane in view["planes"])
        assert low <= min(view["ticks"]) < max(view["ticks"]) <= high


def test_the_sentence_has_the_facts(tmp_path):
    median, image, *_ = payload(page(tmp_path, around_images()))["views"]
    assert median["sentence"].startswith(
        "Median over n = 3 images of the loss (nats) on the plane around each, attack pgd, epsilon 0.5; heights and "
        "colours linear, from 0 to"
    )
    assert "5 x 5 points: adversarial direction (multiples of epsilon) from -3 to 3" in median["sentence"]
    assert median["sentence"].endswith("from -2 to 2, seed 7.")
    assert image["sentence"].startswith("Image 10 of class 3: loss (nats) on the plane around it, attack pgd")
    assert "3 of 3 images can be shown" in image["sentence"]


def test_the_page_is_whole_and_asks_for_nothing(tmp_path):
    text = page(tmp_path, around_images())
    tags = Tags()
    tags.feed(text)
    kinds = [tag for tag, _ in tags.tags]
    assert ("html", {"lang": "en"}) in tags.tags
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in tags.tags
    assert "Loss landscape around images" in tags.texts
    assert not {"link", "img", "iframe", "object"} & set(kinds)
    assert not [attributes for _, attributes in tags.tags if {"src", "href"} & attributes.keys()]
    (policy,) = [known["content"] for _, known in tags.tags if known.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert "Plotly" in text


def test_names_are_only_names(tmp_path):
    settings = {**SETTINGS, "custom": HOSTILE}
    text = page(tmp_path, around_weights((HOSTILE, "other")), settings)
    assert HOSTILE not in text
    assert "<script>alert" not in text
    tags = Tags()
    tags.feed(text)
    assert [tag for tag, _ in tags.tags].count("script") == 3
    found = payload(text)
    assert found["scenes"][0].startswith("<b>x</b>&y")
    custom = found["views"][-1]
    assert custom["words"].startswith("&lt;b&gt;x&lt;/b&gt;&amp;y")
    assert custom["name"] == HOSTILE
    assert custom["title"].startswith("\u2039b\u203ax\u2039/b\u203a&y")
    titles = [found["layout"]["scene"][axis]["title"]["text"] for axis in ("xaxis", "yaxis")]
    assert titles == ["adversarial direction<br>(multiples of epsilon)", "random \u2039b\u203a&direction"]


def test_plotly_knows_every_setting(tmp_path):
    found = payload(page(tmp_path, around_images()))
    figure = go.Figure(data=[found["trace"]], layout=found["layout"])
    assert figure.data[0].type == "surface"
    colours = found["trace"]["colorscale"]
    assert [at for at, _ in colours] == pytest.approx(np.linspace(0, 1, 11))
    assert colours[0][1] == "#440154"


def test_weights_show_a_quantity_at_a_time(tmp_path):
    found = payload(page(tmp_path, around_weights(), {**SETTINGS, "custom": "trace", "images": 500}))
    assert [view["name"] for view in found["views"]] == ["loss (nats)", "accuracy", "trace"]
    loss, accuracy, custom = found["views"]
    assert loss["sentence"].startswith("Loss (nats) over n = 500 images on a plane through the weights")
    assert accuracy["ends"] == [0, 1]
    assert np.isnan(values(custom["planes"][0])).sum() == 5
    assert "undefined at 10 points, left out" in custom["sentence"]


def test_sizes_far_apart_are_drawn_on_a_symmetric_log_scale(tmp_path):
    landscape = around_images()
    landscape.loc[landscape["checkpoint"] == "rl-0", "loss"] *= 100
    views = payload(page(tmp_path, landscape))["views"]
    assert [view["threshold"] for view in views] == [10, 1, 10, 10]
    assert "heights and colours linear up to 10 and logarithmic above" in views[0]["sentence"]


def test_infinite_values_end_where_the_scale_does(tmp_path):
    landscape = around_images()
    landscape.loc[landscape["a"] == 3, "loss"] = np.inf
    view = payload(page(tmp_path, landscape))["views"][1]
    assert values(view["planes"][0]).max() == view["ends"][1]
    assert "infinite at 10 points, at the end of the scale" in view["sentence"]


def test_an_image_that_a_checkpoint_was_not_measured_on_is_left_out(tmp_path):
    landscape = around_images()
    landscape = landscape[(landscape["checkpoint"] == "sl-0") | (landscape["index"] != 11)]
    views = payload(page(tmp_path, landscape))["views"]
    assert [plane is None for view in views for plane in view["planes"]] == [*[False] * 5, True, False, False]


def test_many_checkpoints_and_images_are_cut_and_it_is_said(tmp_path):
    names = [f"net-{number}" for number in range(MOST_SCENES + 2)]
    found = payload(page(tmp_path, around_images(names, images=MOST_IMAGES + 1, points=3)))
    assert found["scenes"] == names[:MOST_SCENES]
    assert len(found["views"]) == 1 + MOST_IMAGES
    assert f"the first {MOST_SCENES} of {MOST_SCENES + 2} checkpoints are shown" in found["views"][0]["sentence"]
    assert f"{MOST_IMAGES} of {MOST_IMAGES + 1} images can be shown" in found["views"][1]["sentence"]


def test_large_planes_are_thinned_to_a_page_below_6_megabytes(tmp_path):
    landscape = around_images([f"net-{number}" for number in range(4)], images=8, points=101)
    text = page(tmp_path, landscape)
    assert len(text.encode()) < 6e6
    found = payload(text)
    planes = [plane for view in found["views"] for plane in view["planes"]]
    assert sum(values(plane).size for plane in planes) <= MOST_VALUES
    for plane in planes:
        assert (plane["a"][0], plane["a"][len(plane["a"]) // 2], plane["a"][-1]) == (-3, 0, 3)
    rows = landscape[(landscape["checkpoint"] == "net-1") & (landscape["index"] == 12)].set_index(["a", "b"])["loss"]
    kept = planes[4 * 3 + 1]
    assert_allclose(values(kept), [[rows[a, b] for a in kept["a"]] for b in kept["b"]], rtol=1e-6)
    sides = f"{len(kept['a'])} x {len(kept['b'])}"
    assert found["views"][0]["sentence"].endswith(f"drawn at {sides} of these.")
    assert "101 x 101 points" in found["views"][0]["sentence"]


@pytest.mark.parametrize("loss", [0.25, np.inf, np.nan])
def test_degenerate_values_make_a_page(tmp_path, loss):
    found = payload(page(tmp_path, around_images(points=2).assign(loss=loss), {}))
    low, high = found["views"][0]["ends"]
    assert low < high


def test_writing_again_gives_the_same_bytes(tmp_path):
    assert page(tmp_path, around_images()) == page(tmp_path, around_images())


def test_unwritable_directory_is_the_users_mistake(tmp_path):
    (tmp_path / "figures").touch()
    with pytest.raises(GradscopeError, match="not writable"):
        write_surfaces(around_images(), SETTINGS, tmp_path / "figures" / "landscape-3d.html")


def test_plotly_is_loaded_only_to_write_a_page():
    program = "import sys, gradscope.figures.draw; sys.exit('plotly' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(gradscope.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == 0
