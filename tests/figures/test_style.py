import io
import os
import re
import resource
import subprocess
import sys
import zlib
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from fontTools import subset
from fontTools.ttLib import TTFont
from matplotlib.colors import to_rgb

import gradscope
from gradscope.errors import GradscopeError
from gradscope.figures import style
from gradscope.figures.style import Series


def rows(*triples: tuple[str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(triples, columns=["checkpoint", "attack", "mode"])


def simple_figure():
    labels = ["sl-0"]
    figure, grid = style.panels((1, 1), style.COLUMN, 2.0, labels)
    (look,) = style.looks(rows(("sl-0", "pgd", "sl"))).values()
    grid[0, 0].plot([0, 1, 2], [0.5, float("nan"), 0.7], **look.line(3))
    style.add_legend(figure, [look])
    return figure


def test_every_mode_has_a_colour_of_its_own():
    assert set(style.COLOURS) == {"sl", "rl", "sl-adv", "rl-adv", "sl-rl", "rl-sl", "foreign"}
    colours = [*style.COLOURS.values(), style.FALLBACK_COLOUR]
    assert len(set(colours)) == len(colours)


def test_colours_are_told_apart_without_red_or_green():
    """Luminance-weighted distance after dropping the red-green axis: no two modes fall together."""
    seen = [(0.5 * (red + green), blue) for red, green, blue in map(to_rgb, style.COLOURS.values())]
    for index, (yellow, blue) in enumerate(seen):
        for other_yellow, other_blue in seen[:index]:
            assert abs(yellow - other_yellow) + abs(blue - other_blue) > 0.08


def test_looks_colour_by_mode_dash_by_attack_marker_by_repeat():
    triples = [(name, attack, "sl") for name in ("a", "b") for attack in ("pgd", "fgsm")]
    table = style.looks(rows(*triples, ("c", "pgd", "made-up")))
    a, a_fgsm, b, _, c = table.values()
    assert a.colour == a_fgsm.colour == b.colour == style.COLOURS["sl"]
    assert c.colour == style.FALLBACK_COLOUR
    assert a.dash == b.dash != a_fgsm.dash
    assert a.marker == a_fgsm.marker != b.marker
    assert len({(look.colour, str(look.dash), look.marker) for look in table.values()}) == 5
    assert a.label == "a, pgd"


def test_a_variant_has_the_colour_of_what_it_varies():
    named = {"rl-x10": "rl", "sl-adv-long": "sl-adv", "sl-rl-x0.1": "sl-rl", "sl-long": "sl"}
    for variant, mode in named.items():
        assert style.colour_of(variant) == style.COLOURS[mode]
    assert style.colour_of("slow") == style.FALLBACK_COLOUR
    table = style.looks(rows(("a", "pgd", "rl"), ("b", "pgd", "rl-x10"), ("c", "pgd", "x"), ("d", "pgd", "y")))
    assert len({(look.colour, look.marker) for look in table.values()}) == 4


def test_looks_do_not_depend_on_the_order_of_rows():
    triples = [("a", "pgd", "rl"), ("b", "pgd", "rl"), ("b", "fgsm", "rl"), ("a", "fgsm", "rl")]
    forward, backward = style.looks(rows(*triples)), style.looks(rows(*triples[::-1]))
    for series in forward:
        one, other = forward[series], backward[series]
        assert (one.colour, one.dash, one.marker, one.label) == (other.colour, other.dash, other.marker, other.label)


def test_label_names_the_attack_only_where_there_are_several():
    assert style.looks(rows(("a", "pgd", "sl")))[Series("a", "pgd")].label == "a"


def test_a_lone_point_is_visible():
    (look,) = style.looks(rows(("a", "pgd", "sl"))).values()
    assert look.line(1)["marker"]
    assert not look.line(2)["marker"]


def test_long_names_lose_their_middle():
    name = "torchvision:" + "x" * 100 + "-v1"
    assert len(style.shorten(name)) <= 46
    assert style.shorten(name).startswith("torchvision:")
    assert style.shorten(name).endswith("-v1")
    assert style.shorten("rl-0") == "rl-0"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("none found within this budget", ["none found", "within this", "budget"]),
        ("timm:vit_base.fcmae_ft_in22k", ["timm:vit_", "base.fcmae_", "ft_in22k"]),
        ("a set-up", ["a set-up"]),
        ("word set-up-invalid", ["word", "set-up-invalid"]),
        ("m" * 20, ["m" * 7, "m" * 7, "m" * 6]),
        ("日本", ["日本"]),
        ("", [""]),
    ],
)
def test_lines_are_broken_where_they_may_be_and_fit(text, lines):
    assert style.wrapped(text, 0.7, 7).split("\n") == lines
    assert all(style.text_width(line, 7) <= 0.7 for line in lines)


def test_the_width_of_a_text_is_that_of_its_widest_line_as_it_is_drawn():
    with style.paper():
        figure, grid = style.panels((1, 1), style.PAGE, 2.0, [])
        text = grid[0, 0].text(0, 0, "$widest$ line", fontsize=9, weight="bold", parse_math=False)
        figure.draw_without_rendering()
        drawn = text.get_window_extent().width / figure.dpi
    assert style.text_width("$widest$ line\n\nother", 9, "bold") == pytest.approx(drawn, rel=0.05)
    assert style.text_width("", 7) == 0


@pytest.mark.parametrize(("count", "length"), [(1, 4), (4, 6), (8, 46), (16, 20), (40, 3)])
@pytest.mark.parametrize("width", [style.COLUMN, style.PAGE])
def test_legend_lies_inside_the_figure_and_off_the_panels(count, length, width):
    drawn = list(style.looks(rows(*((f"{i:02}".ljust(length, "m"), "pgd", "sl") for i in range(count)))).values())
    with style.paper():
        figure, grid = style.panels((1, 1), width, 2.0, [look.label for look in drawn])
        style.add_legend(figure, drawn)
        grid[0, 0].set_xlabel("x")
        figure.draw_without_rendering()
        (legend,) = figure.legends
        box, panel = legend.get_window_extent(), grid[0, 0].get_tightbbox()
    assert box.y0 >= -1
    assert box.y1 <= panel.y0 + 1
    if length < 46:
        assert box.x0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1
    assert grid[0, 0].get_window_extent().height > 0.9 * figure.dpi


def test_axis_label_has_the_unit_where_there_is_one():
    assert style.axis_label("norm", "nats per unit pixel range", " ") == "gradient norm (nats per unit pixel range)"
    assert style.axis_label("accuracy", "-") == "accuracy"
    assert style.axis_label("new-metric", "bits", " ") == "new-metric (bits)"


@pytest.mark.parametrize(
    ("sizes", "apart"), [([1, 29], False), ([1, 31], True), ([0, 5], False), ([float("nan"), 1], False), ([], False)]
)
def test_far_apart(sizes, apart):
    assert style.far_apart(sizes) is apart


def test_settings_are_given_back():
    before = dict(matplotlib.rcParams)
    with style.paper():
        assert matplotlib.rcParams["pdf.fonttype"] == matplotlib.rcParams["ps.fonttype"] == 42
        simple_figure()
    assert dict(matplotlib.rcParams) == before
    with pytest.raises(RuntimeError), style.paper():
        raise RuntimeError
    assert dict(matplotlib.rcParams) == before


def test_saved_fonts_are_outlines_that_can_be_searched(tmp_path):
    pdf, png = style.save(simple_figure(), tmp_path, "plain")
    assert (pdf.name, png.name) == ("plain.pdf", "plain.png")
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF")
    assert b"/CIDFontType2" in content or b"/TrueType" in content
    assert b"/Type3" not in content
    assert b"CreationDate" not in content
    assert png.read_bytes().startswith(b"\x89PNG")


def test_embedded_fonts_hold_letters_and_no_layout(tmp_path):
    defaults = list(subset.Options().drop_tables)
    pdf, _ = style.save(simple_figure(), tmp_path, "plain")
    assert subset.Options().drop_tables == defaults
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf.read_bytes(), re.DOTALL)
    contents = [zlib.decompress(stream) for stream in streams if stream.startswith(b"\x78")]
    fonts = [TTFont(io.BytesIO(content)) for content in contents if content.startswith(b"\0\1\0\0")]
    assert fonts
    for font in fonts:
        assert {"glyf", "loca", "cmap", "hmtx"} <= set(font.keys())
        assert not {"GDEF", "GPOS", "GSUB", "MATH", "kern"} & set(font.keys())
    assert any(b"beginbfrange" in content or b"beginbfchar" in content for content in contents), "text can be copied"


def test_png_has_200_dots_an_inch(tmp_path):
    figure = simple_figure()
    _, png = style.save(figure, tmp_path, "plain")
    width = int.from_bytes(png.read_bytes()[16:20], "big")
    assert width == pytest.approx(figure.get_size_inches()[0] * 200, abs=1)


def test_no_pyplot_figure_is_left_open(tmp_path):
    from matplotlib import pyplot

    style.save(simple_figure(), tmp_path, "plain")
    assert pyplot.get_fignums() == []


def test_another_process_with_other_hashes_writes_the_same_bytes(tmp_path):
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r});"
        "from test_style import simple_figure; from gradscope.figures import style; from pathlib import Path\n"
        "with style.paper(): style.save(simple_figure(), Path(sys.argv[1]), 'plain')"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(gradscope.__file__).parents[1])}
        subprocess.run([sys.executable, "-c", program, str(tmp_path / seed)], env=environment, check=True)
    for name in ("plain.pdf", "plain.png"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_unwritable_directory_is_the_users_mistake(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(GradscopeError, match="not writable"):
        style.save(simple_figure(), tmp_path / "file" / "figures", "plain")


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(GradscopeError, match=r"^out: .*figure\.pdf cannot be written: File too large$"):
            style.save(simple_figure(), tmp_path, "figure")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
