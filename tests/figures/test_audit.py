"""The figures and the printed lines of an audit, from files whose numbers are known."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.testing import assert_allclose

from gradscope.errors import GradscopeError
from gradscope.figures import style
from gradscope.figures.audit import ALONE, BOUND, CLEAN, DOTS, draw_audit
from gradscope.figures.checks import STATES, VERDICTS, state_of
from gradscope.figures.draw import draw
from gradscope.figures.example_images import MOST, file_names
from gradscope.reporting.console import audit_lines
from gradscope.results.audits import EXAMPLE_ARRAYS
from gradscope.results.files import write_json
from gradscope.results.schemas import AUDIT, AUDIT_JSON, EXAMPLE_IMAGES
from gradscope.results.stats import wilson_interval
from gradscope.results.tables import write_table

N = 200
#: Checks: id, name, state, accuses, value, threshold, p-value.
CHECKS = (
    ("D1", "set-up", "passed", False, 0, 0.0, None),
    ("N1", "dead gradients", "fired", False, 0.25, 0.01, None),
    ("N3", "loss", "fired", True, 0.3175, 0.1, 9.2e-5),
    ("X1", "query", "passed", False, 0.0125, 0.002, 0.31),
    ("X2", "transfer", "abstained", False, None, 0.002, None),
    ("G1", "geometry", "passed", False, 0.9812, 0.1, None),
)
BUDGETS_REASON = "costs more than this budget allows"


def entry(
    checkpoint: str = "sl-0",
    verdict: str = "masking found",
    causes: tuple[str, ...] = ("saturation",),
    *,
    clean: int = 186,
    pgd: int | None = 170,
    bound: int = 110,
    checks: tuple[tuple[Any, ...], ...] = CHECKS,
) -> dict[str, Any]:
    """What `gradscope audit` writes of one checkpoint; counts are of images that are right."""
    names = ("id", "name", "state", "accuses", "value", "threshold", "p_value")
    said = {"ci_low": None, "ci_high": None, "images": [3, 4]}
    words = {"cause": "what {id} saw", "next_step": "what to do about {id}"}
    made = [dict(zip(names, check, strict=True)) for check in checks]
    under = {"fgsm": 0.9, "square": bound / N} | ({} if pgd is None else {"pgd": pgd / N})
    ends = {kind: wilson_interval(count, N)._asdict() for kind, count in (("clean", clean), ("bound", bound))}
    limits = {kind: {"ci_low": end["low"], "ci_high": end["high"]} for kind, end in ends.items()}
    return {
        **{"checkpoint": checkpoint, "mode": "sl", "dataset": "digits", "arch": "cnn2", "seed": 0, "schema": 1},
        **{"verdict": verdict, "causes": list(causes), "reason": "N3 fired; cause: saturation"},
        "robust_accuracy": {"upper_bound": bound / N, **limits["bound"], "n": N},
        "clean_accuracy": {"value": clean / N, **limits["clean"]},
        "under": under,
        "threat": {"norm": "linf", "epsilon": 8 / 255, "box": True},
        "budget": "quick",
        "left_out": {"fab": BUDGETS_REASON, "transfer": "no examples were given", "fab-t": BUDGETS_REASON},
        "checks": [{**one, **said, **{key: text.format(**one) for key, text in words.items()}} for one in made],
    }


def document(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"schema": 1, "audits": list(entries)}


def rows(*entries: dict[str, Any]) -> pd.DataFrame:
    """The same as rows of AUDIT."""
    found = []
    for one in entries:
        who = {key: one[key] for key in ("checkpoint", "mode", "dataset", "arch", "seed", "budget", "verdict")}
        for made in one["checks"]:
            row = {key: value for key, value in made.items() if key not in ("id", "images")}
            row |= {"value": np.nan if made["value"] is None else made["value"], "accuses": int(made["accuses"])}
            found.append(
                who
                | {"attack": "audit", "norm": "linf", "epsilon": 8 / 255, "check": made["id"], "images": "3 4"}
                | row
            )
    return pd.DataFrame(found, columns=AUDIT.names)


def example_images(count: int = 3, *, channels: int = 1, checkpoint: str = "sl-0", side: int = 4) -> dict[str, Any]:
    """Images at half brightness; the adversarial one is ``0.02 (place + 1)`` brighter at a corner, darker opposite.

    Every other one stands; the third is wrong when clean.
    """
    clean = np.full((count, channels, side, side), 0.5, dtype=np.float32)
    adversarial = clean.copy()
    for place in range(count):
        adversarial[place, :, 0, 0] += 0.02 * (place + 1)
        adversarial[place, :, -1, -1] -= 0.01 * (place + 1)
    label = np.arange(count) % 10
    predicted = np.where(np.arange(count) % 2, label, (label + 1) % 10)
    before = np.where(np.arange(count) == 2, 9, label)
    return {
        **{"clean": clean, "adversarial": adversarial, "index": 100 + np.arange(count), "label": label},
        **{"clean_predicted": before, "adversarial_predicted": predicted},
        "label_name": np.array([f"cat {number}" for number in label], dtype=str),
        "clean_predicted_name": np.array([f"cat {number}" for number in before], dtype=str),
        "adversarial_predicted_name": np.array([f"cat {number}" for number in predicted], dtype=str),
        "attack": np.array(["square"] * count, dtype=str),
        "check": np.array(["X1" if place == 0 else "" for place in range(count)], dtype=str),
        "checkpoint": np.array([checkpoint] * count, dtype=str),
    }


def drawn(*entries, shown=None):
    with style.paper():
        found = draw_audit(rows(*entries), document(*entries), shown)
    return {drawing.name: drawing for drawing in found}


def written(figure: Figure) -> list[str]:
    """Every line of text in the figure."""
    texts = [text for axes in figure.axes for text in axes.texts] + list(figure.texts)
    return [text.get_text() for text in texts]


def cell(drawing, check: str, column: int = 0, columns: int = 1) -> tuple[Rectangle, str]:
    """The rectangle of a check's cell and what is written in it."""
    (axes,) = drawing.figure.axes
    (name,) = [text for text in axes.texts if text.get_text() == check]
    height = name.get_position()[1] - 0.03
    boxes = [box for box in axes.patches if box.get_y() < height < box.get_y() + box.get_height()]
    assert len(boxes) == columns
    box = sorted(boxes, key=lambda box: box.get_x())[column]
    inside = [text for text in axes.texts if _holds(box, *text.get_position())]
    return box, " ".join(text.get_text() for text in inside)


def _holds(box: Rectangle, x: float, y: float) -> bool:
    return box.get_x() <= x <= box.get_x() + box.get_width() and box.get_y() <= y <= box.get_y() + box.get_height()


def grey(colour) -> float:
    return float(np.dot(to_rgb(colour), (0.299, 0.587, 0.114)))


def assert_inside(figure: Figure) -> None:
    """No text leaves the figure, and none lies on another."""
    figure.draw_without_rendering()
    texts = [text for axes in figure.axes for text in axes.texts if text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert box.y1 <= figure.bbox.y1 + 1, text
    for place, box in enumerate(boxes):
        for other, text in zip(boxes[:place], texts, strict=False):
            across = min(box.x1, other.x1) - max(box.x0, other.x0)
            along = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert across <= 1 or along <= 0.3 * min(box.height, other.height), (text, texts[place])


def test_the_four_states_are_apart_in_colour_in_grey_and_by_symbol():
    looks = list(STATES.values())
    assert len({look.symbol for look in looks}) == len(looks)
    for place, look in enumerate(looks):
        assert abs(grey(look.fill) - grey(look.ink)) > 0.4, "the text can be read"
        for other in looks[:place]:
            assert abs(grey(look.fill) - grey(other.fill)) > 0.1 or bool(look.hatch) != bool(other.hatch)
    assert STATES.keys() == {"accuses", "fired", "passed", "abstained"}
    assert len(set(VERDICTS.values())) == 4


def test_a_state_that_no_audit_gives_is_refused():
    with pytest.raises(GradscopeError, match=r"^directory: audit.csv has an unknown state '2'; known: accuses, fired"):
        state_of({"state": "2", "accuses": 0})


def test_a_cell_shows_state_value_and_threshold():
    drawing = drawn(entry())["audit-checks"]
    wanted = {
        "D1": ("passed", "✓ 0 fires > 0"),
        "N1": ("fired", "! 0.25 fires > 0.01"),
        "N3": ("accuses", "✗ 0.318 fires > 0.1"),
        "X1": ("passed", "≈ 0.0125 fires > 0.002, n.s."),
        "X2": ("abstained", "\N{EN DASH} abstained"),
        "G1": ("passed", "✓ 0.981 fires < 0.1"),
    }
    for check, (state, text) in wanted.items():
        box, found = cell(drawing, check)
        assert found == text
        assert to_hex(box.get_facecolor()) == to_hex(STATES[state].fill)
        assert bool(box.get_hatch()) == bool(STATES[state].hatch)
    names = written(drawing.figure)
    assert {"set-up", "dead gradients", "loss", "query", "transfer", "geometry"} <= set(names)
    assert "nan" not in " ".join(names)


def test_checks_stand_in_groups():
    (axes,) = drawn(entry())["audit-checks"].figure.axes
    heights = {text.get_text(): text.get_position()[1] for text in axes.texts}
    ids = [check[0] for check in CHECKS]
    steps = dict(zip(ids[1:], np.diff([heights[name] for name in ids]), strict=True))
    assert steps["N3"] == pytest.approx(steps["X2"])
    assert all(steps[first] > 1.1 * steps["N3"] for first in ("N1", "X1", "G1"))


@pytest.mark.parametrize(
    ("verdict", "causes", "text"),
    [
        ("masking found", ("missing gradient",), "masking found: missing gradient"),
        ("none found within this budget", (), "none found within this budget"),
        ("inconclusive", ("weak attack",), "inconclusive: weak attack"),
        ("set-up invalid", (), "set-up invalid"),
    ],
)
@pytest.mark.parametrize("columns", [1, 2, 8])
def test_the_verdict_stands_above_its_column(verdict, causes, text, columns):
    entries = [entry(f"net-{place}", verdict, causes) for place in range(columns)]
    drawing = drawn(*entries)["audit-checks"]
    (axes,) = drawing.figure.axes
    boxes = sorted(axes.patches, key=lambda box: (round(box.get_y(), 6), box.get_x()))[:columns]
    for place, box in enumerate(boxes):
        inside = [label for label in axes.texts if _holds(box, *label.get_position())]
        assert " ".join(label.get_text() for label in inside) == text
        assert to_hex(box.get_facecolor()) == to_hex(VERDICTS[verdict].fill)
        above = [label for label in axes.texts if label.get_text() == f"net-{place}"]
        assert [label.get_position()[0] for label in above] == [pytest.approx(box.get_x() + box.get_width() / 2)]
    assert_inside(drawing.figure)


LONG = "torchvision:wide_resnet101_2.of_imagenet_v2-and-more"


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 8, 10])
def test_long_names_fit_and_one_checkpoint_fits_a_column(columns):
    entries = [entry(f"{place}{LONG}") for place in range(columns)]
    drawings = drawn(*entries, shown=example_images(checkpoint=f"0{LONG}"))
    for drawing in drawings.values():
        assert_inside(drawing.figure)
    width = drawings["audit-checks"].figure.get_size_inches()[0]
    assert width <= style.COLUMN + 1e-9 if columns <= 3 else columns > 8 or width <= style.PAGE + 1e-9
    assert drawings["audit-robustness"].figure.get_size_inches()[0] == style.COLUMN


def test_each_column_has_its_own_checks():
    other = tuple((*check[:2], "passed", False, 0.0, *check[5:]) for check in CHECKS if check[0] != "X2")
    drawing = drawn(entry("a"), entry("b", "none found within this budget", (), checks=other))["audit-checks"]
    assert cell(drawing, "N3", 0, 2)[1] == "✗ 0.318 > 0.1"
    assert cell(drawing, "N3", 1, 2)[1] == "✓ 0 > 0.1"
    assert cell(drawing, "X2", 0, 1)[1] == "\N{EN DASH} abstained"


def test_the_caption_of_the_checks_says_what_a_reader_needs():
    caption = drawn(entry())["audit-checks"].caption
    for needed in ("linf, epsilon 0.03137", "n = 200 images", "quick", "threshold", "accuse", "abstained", "McNemar"):
        assert needed in caption
    assert "n.s." in caption
    assert "Wilson" in caption


def dots(drawing) -> dict[str, list[float]]:
    """Where the marks of each kind lie, from above."""
    (axes,) = drawing.figure.axes
    kinds = {dot.mark["marker"]: name for name, dot in DOTS.items()}
    found: dict[str, list[float]] = {name: [] for name in DOTS}
    for line in axes.lines:
        if line.get_marker() in kinds:
            found[kinds[line.get_marker()]] += list(line.get_xdata())
    return found


def whiskers(drawing) -> list[tuple[float, float]]:
    (axes,) = drawing.figure.axes
    return [tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]


def gaps(drawing) -> list[tuple[float, float]]:
    """The shaded part of each block, from left to right."""
    (axes,) = drawing.figure.axes
    shades = [patch for patch in axes.patches if patch.get_alpha()]
    return [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in shades]


def test_dots_intervals_and_gap_are_the_data():
    drawing = drawn(entry(clean=186, pgd=170, bound=110))["audit-robustness"]
    assert dots(drawing) == {CLEAN: [0.93], ALONE: [0.85], BOUND: [0.55]}
    assert_allclose(whiskers(drawing), [wilson_interval(count, N) for count in (186, 170, 110)])
    assert_allclose(gaps(drawing), [(0.55, 0.85)])
    texts = written(drawing.figure)
    assert "30.0 points" in texts
    assert "sl-0" in texts
    assert "✗ masking found: saturation" in texts


def test_blocks_follow_the_document():
    entries = [entry(f"net-{place}", pgd=180 - place, bound=100 + place) for place in range(8)]
    drawing = drawn(*entries)["audit-robustness"]
    found = dots(drawing)
    assert found[ALONE] == [(180 - place) / N for place in range(8)]
    assert found[BOUND] == [(100 + place) / N for place in range(8)]
    (axes,) = drawing.figure.axes
    names = [text.get_text() for text in axes.texts if text.get_text().startswith("net-")]
    assert names == [f"net-{place}" for place in range(8)]
    assert_inside(drawing.figure)


def test_where_nothing_beats_pgd_there_is_no_gap():
    drawing = drawn(entry(pgd=110, bound=110))["audit-robustness"]
    assert gaps(drawing) == []
    assert "no gap" in written(drawing.figure)
    assert "random" not in drawing.caption


def test_a_random_model_may_lie_above_pgd():
    drawing = drawn(entry(pgd=100, bound=110))["audit-robustness"]
    assert gaps(drawing) == []
    assert dots(drawing)[BOUND] == [0.55]
    assert "where the lowest lies above PGD the output is random" in drawing.caption


def test_without_pgd_its_mark_is_missing_and_that_is_said():
    drawing = drawn(entry(pgd=None))["audit-robustness"]
    assert dots(drawing) == {CLEAN: [0.93], ALONE: [], BOUND: [0.55]}
    assert gaps(drawing) == []
    assert "PGD was not run" in written(drawing.figure)
    labels = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert labels == ["clean", "lowest reached, an upper bound"]
    both = drawn(entry("a", pgd=None), entry("b"))["audit-robustness"]
    assert dots(both)[ALONE] == [0.85]
    assert len(both.figure.legends[0].get_texts()) == 4


@pytest.mark.parametrize(("pgd", "bound"), [(190, 0), (200, 200), (40, 0), (0, 0), (200, 0)])
def test_the_words_for_the_gap_stay_inside(pgd, bound):
    drawing = drawn(entry(clean=200, pgd=pgd, bound=bound))["audit-robustness"]
    assert_inside(drawing.figure)
    (axes,) = drawing.figure.axes
    frame = axes.get_window_extent()
    for text in axes.texts:
        assert frame.x0 <= text.get_window_extent().x0
        assert text.get_window_extent().x1 <= frame.x1


def test_the_caption_of_the_accuracies():
    caption = drawn(entry())["audit-robustness"].caption
    for needed in ("linf, epsilon 0.03137", "n = 200 images", "Wilson score interval", "upper bound", "PGD"):
        assert needed in caption


def test_captions_say_that_nothing_found_is_no_proof():
    for verdict, said in (("none found within this budget", True), ("masking found", False)):
        drawings = drawn(entry("a", "inconclusive"), entry("b", verdict))
        for name in ("audit-checks", "audit-robustness"):
            assert ("no proof of robustness" in drawings[name].caption) == said


def pictures(drawing) -> list[np.ndarray]:
    """The pictures, column by column: clean, adversarial, difference."""
    return [np.asarray(image.get_array()) for axes in drawing.figure.axes for image in axes.get_images()]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_example_is_the_image_the_attack_and_their_difference(channels):
    shown = example_images(3, channels=channels)
    drawing = drawn(entry(), shown=shown)["audit-evidence-sl-0"]
    found = pictures(drawing)
    assert len(found) == 9
    for place in range(3):
        clean, adversarial, difference = found[3 * place : 3 * place + 3]
        assert clean.shape == ((4, 4) if channels == 1 else (4, 4, 3))
        assert_allclose(clean, 0.5)
        assert_allclose(adversarial[0, 0], 0.5 + 0.02 * (place + 1), rtol=1e-6)
        assert_allclose(difference[1, 1], 0.5, err_msg="no change is grey")
        assert_allclose(difference[0, 0], 1, rtol=1e-4)
        assert_allclose(difference[-1, -1], 0.25, rtol=1e-4)
    for axes in drawing.figure.axes:
        for image in axes.get_images():
            assert image.get_interpolation() == "nearest"
            assert image.get_clim() == (0, 1)
            assert image.get_cmap().name == "gray"
    assert {"±0.02", "±0.04", "±0.06"} <= set(written(drawing.figure))
    assert "wider ball" not in drawing.caption


def test_the_wider_ball_of_a_check_is_said():
    shown = example_images(3)
    shown["check"] = np.array(["N3", "M2", "M2"])
    drawing = drawn(entry(), shown=shown)["audit-evidence-sl-0"]
    assert "linf, epsilon 0.03137, M2 in a wider ball (masking found: saturation)" in drawing.caption


def test_what_is_written_around_an_example():
    texts = written(drawn(entry(), shown=example_images(3))["audit-evidence-sl-0"].figure)
    assert {"#100, X1", "#101", "#102"} <= set(texts)
    assert {"cat 0 → cat 1", "cat 1, not fooled", "cat 2 → cat 3", "clean: cat 9"} <= set(texts)
    assert texts.count("square") == 3


@pytest.mark.parametrize(("count", "columns", "bands"), [(1, 1, 1), (6, 6, 1), (8, 4, 2), (12, 6, 2), (15, 6, 2)])
def test_example_images_wrap_after_six_and_end_at_twelve(count, columns, bands):
    drawing = drawn(entry(), shown=example_images(count))["audit-evidence-sl-0"]
    panels = [axes for axes in drawing.figure.axes if axes.get_images()]
    assert len(panels) == 3 * min(count, MOST)
    places = {tuple(np.round(axes.get_position().p0, 4)) for axes in panels}
    assert len({x for x, _ in places}) == columns
    assert len({y for _, y in places}) == 3 * bands
    assert drawing.figure.get_size_inches()[0] <= style.PAGE
    assert drawing.caption.startswith(f"{min(count, MOST)} of {count} images")
    assert_inside(drawing.figure)


def test_an_attack_that_changed_nothing_is_grey():
    shown = example_images(1)
    shown["adversarial"] = shown["clean"]
    assert_allclose(pictures(drawn(entry(), shown=shown)["audit-evidence-sl-0"])[2], 0.5)


@pytest.mark.parametrize("shown", [None, example_images(0)])
def test_without_example_images_the_other_figures_are_drawn(shown):
    assert list(drawn(entry(), shown=shown)) == ["audit-checks", "audit-robustness"]


def test_every_checkpoint_has_example_images_of_its_own():
    parts = [example_images(2, checkpoint="a/b"), example_images(1, checkpoint="A:B")]
    shown = {key: np.concatenate([part[key] for part in parts]) for key in EXAMPLE_ARRAYS}
    drawings = drawn(entry("a/b"), entry("none"), entry("A:B"), shown=shown)
    names = list(drawings)[2:]
    assert names == ["audit-evidence-a-b", "audit-evidence-A-B-2"]
    assert [len(pictures(drawings[name])) for name in names] == [6, 3]


def test_file_names_are_safe_and_never_alike():
    names = file_names(["SL", "sl", "../../etc/passwd", "日本", "日", "x" * 300, "a b", "a$b"])
    assert list(names.values()) == ["SL", "sl-2", "etc-passwd", "checkpoint", "checkpoint-2", "x" * 60, "a-b", "a-b-2"]


def test_names_are_drawn_as_they_are_written(tmp_path):
    name = "$\\frac{a}$ <b>_x^2"
    shown = example_images(1, checkpoint=name)
    shown["label_name"] = np.array(["a$_1$"])
    for drawing in drawn(entry(name), shown=shown).values():
        texts = [text for axes in drawing.figure.axes for text in axes.texts]
        assert not [text for text in texts if "$" in text.get_text() and text.get_parse_math()]
        style.save(drawing.figure, tmp_path, drawing.name)
        assert "$" in "".join(written(drawing.figure))


def test_letters_that_the_font_lacks_are_no_error(tmp_path):
    for drawing in drawn(entry("日本"), shown=example_images(1, checkpoint="日本")).values():
        style.save(drawing.figure, tmp_path, drawing.name)


def directory_of(path: Path, *entries: dict[str, Any], shown: dict[str, Any] | None = None) -> Path:
    write_table(path / AUDIT.file, AUDIT, rows(*entries).to_dict("records"))
    write_json(path / AUDIT_JSON, document(*entries))
    if shown is not None:
        np.savez(path / EXAMPLE_IMAGES, **shown)
    return path


def test_drawn_from_the_files_alone_and_the_same_bytes_twice(tmp_path):
    directory = directory_of(tmp_path, entry(), entry("other"), shown=example_images(2))
    first = {path: path.read_bytes() for path in draw(directory)}
    names = ["audit-checks", "audit-robustness", "audit-evidence-sl-0"]
    assert [path.name for path in first] == [f"{name}.{kind}" for name in names for kind in ("pdf", "png")]
    assert {path: path.read_bytes() for path in draw(directory)} == first
    captions = json.loads((tmp_path / "figures" / "captions.json").read_text())
    assert list(captions) == names
    assert all(caption.endswith(".") for caption in captions.values())


def test_no_audit_is_drawn_from_half_of_its_files(tmp_path):
    directory_of(tmp_path, entry())
    (tmp_path / AUDIT_JSON).unlink()
    with pytest.raises(GradscopeError, match=r"audit\.csv and audit\.json \(`gradscope audit`\)"):
        draw(tmp_path)


def test_no_audits_draw_nothing(tmp_path):
    assert draw(directory_of(tmp_path)) == []
    assert audit_lines(tmp_path) == ""


def fails(directory: Path) -> str:
    with pytest.raises(GradscopeError) as caught:
        draw(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": 1, "aud', "audit.json is not JSON"),
        ("\xff", "must be UTF-8 text"),
        ("[]", "audit.json is damaged"),
        ('{"schema": 2, "audits": []}', "another version: schema"),
        ('{"schema": 1, "audits": [{"checkpoint": "a"}]}', "audits.0.verdict: Field required"),
    ],
)
def test_a_damaged_document_is_one_line(tmp_path, content, message):
    directory_of(tmp_path, entry())
    (tmp_path / AUDIT_JSON).write_bytes(content.encode("latin-1"))
    assert message in fails(tmp_path)
    with pytest.raises(GradscopeError, match=re.escape(message)):
        audit_lines(tmp_path)


def test_a_share_outside_of_0_to_1_is_named(tmp_path):
    wrong = entry()
    wrong["under"]["pgd"] = 85
    assert "audits.0.under.pgd" in fails(directory_of(tmp_path, wrong))


def test_files_of_different_audits_are_not_mixed(tmp_path):
    directory_of(tmp_path, entry("a"))
    write_json(tmp_path / AUDIT_JSON, document(entry("b")))
    assert "audit.csv and audit.json must be of the same audits, got" in fails(tmp_path)
    assert "evidence.npz" in fails(directory_of(tmp_path, entry("a"), shown=example_images(1, checkpoint="b")))


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut short"])
def test_damaged_example_images_are_one_line(tmp_path, content):
    directory_of(tmp_path, entry())
    (tmp_path / EXAMPLE_IMAGES).write_bytes(content)
    assert "evidence.npz" in fails(tmp_path)


def test_example_images_cut_short_or_bent_are_one_line(tmp_path):
    directory_of(tmp_path, entry(), shown=example_images(2, side=32))
    whole = (tmp_path / EXAMPLE_IMAGES).read_bytes()
    for end in (len(whole) // 2, len(whole) - 30):
        (tmp_path / EXAMPLE_IMAGES).write_bytes(whole[:end])
        assert "evidence.npz" in fails(tmp_path)
    (tmp_path / EXAMPLE_IMAGES).write_bytes(whole[:200] + b"\xff" * 50 + whole[250:])
    assert "evidence.npz" in fails(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": np.arange(3)}, "must have the same number of rows"),
        ({"label": np.int64(3)}, "must have the same number of rows"),
        ({"label": np.array(["a", "b"])}, "must hold integers, got <U1"),
        ({"clean": np.zeros((2, 2, 4, 4)), "adversarial": np.zeros((2, 2, 4, 4))}, "with C 1 or 3"),
        ({"clean": np.zeros((2, 1, 4, 5))}, "with C 1 or 3"),
        ({"attack": np.array(["pgd", None], dtype=object)}, "allow_pickle"),
    ],
)
def test_example_images_of_another_form_are_one_line(tmp_path, change, message):
    assert message in fails(directory_of(tmp_path, entry(), shown={**example_images(2), **change}))


def test_a_missing_array_is_named(tmp_path):
    shown = {key: value for key, value in example_images(2).items() if key not in ("check", "attack")}
    assert "lacks attack, check" in fails(directory_of(tmp_path, entry(), shown=shown))


def test_lines_of_a_masked_model(tmp_path):
    lines = audit_lines(directory_of(tmp_path, entry())).split("\n")
    low, high = wilson_interval(170, N)
    assert lines[0] == "sl-0: MASKING FOUND, cause: saturation"
    assert lines[1] == "  N3 fired; cause: saturation"
    assert lines[2].startswith("  clean accuracy            93.0 % [")
    assert lines[3] == f"  under PGD alone           85.0 % [{100 * low:.1f}, {100 * high:.1f}]  n = 200"
    assert re.fullmatch(r"  lowest robust accuracy    55\.0 % \[.*\]  n = 200  an upper bound, linf.*quick", lines[4])
    assert lines[5:8] == [
        "  N3  loss             0.318 > 0.1      p = 9.2e-05  accuses",
        "      what N3 saw",
        "      next: what to do about N3",
    ]
    assert lines[8] == "  N1  dead gradients   0.25 > 0.01                   does not accuse"
    assert lines[11] == "  X2  transfer         abstained: what X2 saw"
    assert lines[12:] == [f"  not run: fab, fab-t ({BUDGETS_REASON}); transfer (no examples were given)"]
    assert "\n".join(lines).isascii()


@pytest.mark.parametrize(
    ("verdict", "causes", "first"),
    [
        ("masking found", ("unexplained", "saturation"), "MASKING FOUND, cause: unexplained"),
        ("none found within this budget", (), "NONE FOUND WITHIN THIS BUDGET"),
        ("inconclusive", ("weak attack",), "INCONCLUSIVE, cause: weak attack"),
        ("set-up invalid", (), "SET-UP INVALID"),
    ],
)
def test_every_verdict_comes_first_and_only_one_warns_of_being_taken_for_a_proof(tmp_path, verdict, causes, first):
    text = audit_lines(directory_of(tmp_path, entry(verdict=verdict, causes=causes)))
    assert text.startswith(f"sl-0: {first}\n")
    assert ("no proof of robustness" in text) == (verdict == "none found within this budget")


def test_lines_without_pgd_and_with_nothing_left_out(tmp_path):
    one = entry(pgd=None, checks=(("G1", "geometry", "fired", False, -0.0033, 0.1, None),)) | {"left_out": {}}
    lines = audit_lines(directory_of(tmp_path, one, entry("b"))).split("\n")
    assert lines[3] == "  under PGD alone          not run"
    assert lines[5] == "  G1  geometry         -0.0033 < 0.1                 does not accuse"
    assert lines[8:10] == ["", "b: MASKING FOUND, cause: saturation"]


def test_the_reader_takes_keys_that_later_versions_add(tmp_path):
    one = entry() | {"new": 1}
    assert audit_lines(directory_of(tmp_path, one)) == audit_lines(directory_of(tmp_path, entry()))
