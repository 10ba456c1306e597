"""``gradscope landscape``, as a user types it: what it prints and what it draws."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

Done = Callable[..., str]
Content = Callable[[Path], dict[str, bytes]]


def manifest(directory: Path) -> dict:
    return json.loads((directory / "manifest.json").read_text())


def test_a_landscape_around_images_is_drawn_and_redrawn(
    world: Path, tmp_path: Path, done: Done, content: Content
) -> None:
    quick = ("--points", 9, "--images", 2, "--steps", 4)
    printed = done("landscape", world / "sl.pt", world / "rl.pt", *quick, "--out", tmp_path / "a")
    *numbers, path = printed.splitlines()
    assert path == str(tmp_path / "a")
    assert [line.split()[:3] for line in numbers[::9]] == [[m, "around", "radius-adversarial"] for m in ("sl", "rl")]
    drawn = content(tmp_path / "a" / "figures")
    indices = manifest(tmp_path / "a")["landscape"]["indices"]
    names = ["landscape-median", "landscape-slices", *(f"landscape-image-{index}" for index in indices)]
    assert set(drawn) >= {f"{name}.{kind}" for name in names for kind in ("pdf", "png")} | {"landscape-3d.html"}
    captions = json.loads(drawn["captions.json"])
    assert all("seed 0" in captions[name] for name in names)
    shutil.rmtree(tmp_path / "a" / "figures")
    done("figures", tmp_path / "a")
    assert content(tmp_path / "a" / "figures") == drawn


def test_two_attacks_on_a_plane_are_animated(world: Path, tmp_path: Path, done: Done, content: Content) -> None:
    quick = ("--points", 5, "--images", 1, "--steps", 3, "--no-figures", "--versus", "pgd-paper")
    done("landscape", world / "sl.pt", *quick, "--out", tmp_path / "a")
    (index,) = manifest(tmp_path / "a")["landscape"]["indices"]
    path = tmp_path / "a" / "figures" / f"landscape-image-{index}.gif"
    assert str(path) in done("figures", "--animate", tmp_path / "a").splitlines()
    caption = json.loads((path.parent / "captions.json").read_text())[path.stem]
    assert f"Image {index} of class" in caption
    assert "under pgd and pgd-paper, from o to x, one mark per step" in caption
    assert "pgd-paper: l2, epsilon 1, step size 0.1, 3 steps" in caption
    done("landscape", world / "sl.pt", *quick[:-2], "--out", tmp_path / "a", "--overwrite")
    assert not path.exists(), "it shows other numbers"


def test_a_landscape_around_weights_is_drawn(world: Path, tmp_path: Path, done: Done, content: Content) -> None:
    quick = ("--space", "weights", "--points", 5, "--images", 20)
    done("landscape", world / "sl.pt", *quick, "--adversarial", "--steps", 2, "--out", tmp_path / "plane")
    names = content(tmp_path / "plane" / "figures")
    wanted = ("loss", "accuracy", "adversarial-loss", "adversarial-accuracy")
    assert {f"weights-{name}.pdf" for name in wanted} <= set(names)
    assert (
        manifest(tmp_path / "plane")["attacks"]["pgd"] | {"steps": 2, "step_size": 1.25}
        == (manifest(tmp_path / "plane")["attacks"]["pgd"])
    )
    line = ("--towards", world / "rl.pt", "--line", "--align", "--curve", "bezier", "--curve-updates", 2)
    printed = done("landscape", world / "sl.pt", *quick, *line, "--out", tmp_path / "line")
    assert {"weights-line-loss.pdf", "weights-ways.pdf"} <= set(content(tmp_path / "line" / "figures"))
    barriers = [line.split()[1:3] for line in printed.splitlines() if "barrier" in line]
    wanted = ("loss-barrier", "accuracy-barrier")
    assert barriers == [[way, what] for way in ("line", "aligned", "bezier") for what in wanted]


def test_a_spectrum_is_printed_and_drawn(world: Path, tmp_path: Path, done: Done, content: Content) -> None:
    quick = ("--images", 20, "--iterations", 8, "--probes", 2, "--eigenvalues", 3, "--matrix", "hessian,gauss-newton")
    printed = done("spectrum", world / "sl.pt", world / "rl.pt", *quick, "--out", tmp_path / "a").splitlines()
    assert printed[-1] == str(tmp_path / "a")
    assert printed[0].split() == ["sl", "hessian,", "2", "random", "vectors"]
    assert [line.split()[0] for line in printed[1:4]] == ["trace", "negative", "eigenvalues"]
    assert sum("with residuals in parentheses:" in line for line in printed) == 4
    assert sum("trace by layer:" in line for line in printed) == 4
    short = done("spectrum", world / "sl.pt", *quick[:-2], "--iterations", 3, "--out", tmp_path / "short")
    assert "of 3 eigenvalues have a residual below 1 %, so some may be missing" in short
    by_image = done("spectrum", world / "sl.pt", *quick, "--space", "input", "--out", tmp_path / "input")
    assert "mean over 20 images" in by_image
    assert "size of the largest eigenvalue" in by_image
    drawn = content(tmp_path / "a" / "figures")
    names = ["spectrum-density", "spectrum-layers-hessian", "spectrum-layers-gauss-newton"]
    assert set(drawn) == {f"{name}.{kind}" for name in names for kind in ("pdf", "png")} | {"captions.json"}
    assert "n = 2 random vectors" in json.loads(drawn["captions.json"])["spectrum-density"]
    shutil.rmtree(tmp_path / "a" / "figures")
    done("report", tmp_path / "a")
    assert "Curvature" in (tmp_path / "a" / "report.html").read_text()
    assert content(tmp_path / "a" / "figures") == drawn
