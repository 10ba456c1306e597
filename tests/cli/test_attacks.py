"""``gradscope attack`` and ``gradscope transfer``, as a user types them: what they print and what they draw."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from gradscope.results.schemas import ATTACK_SAMPLES, ATTACKS, TRANSFER, Table
from gradscope.results.tables import read_table

Done = Callable[..., str]
Content = Callable[[Path], dict[str, bytes]]


def manifest(directory: Path) -> dict:
    return json.loads((directory / "manifest.json").read_text())


def rows(directory: Path, table: Table) -> pd.DataFrame:
    return read_table(directory / table.file, table)


def test_an_attack_prints_the_lowest_robust_accuracy_and_is_drawn(
    world: Path, tmp_path: Path, done: Done, content: Content
) -> None:
    quick = ("--attacks", "pgd,square,transfer", "--steps", 3, "--queries", 10, "--samples", 30, "--save-images")
    out = tmp_path / "a"
    printed = done("attack", world / "sl.pt", world / "rl.pt", *quick, "--epsilons", "0.5,1", "--out", out).splitlines()
    assert printed[-1] == str(out)
    table = rows(out, ATTACKS)
    lowest = [line for line in printed if "lowest robust accuracy, an upper bound" in line]
    assert [line.split()[:3] for line in lowest] == [[m, "l2", e] for m in ("sl", "rl") for e in ("0.5", "1")]
    values = table[(table["attack"] == "square") & (table["metric"] == "robust-accuracy")]
    for line, row in zip(lowest, values.to_dict("records"), strict=True):
        interval = f"[{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]"
        assert f"{100 * row['value']:.1f} % {interval}  n = 30" in line
    assert sum("transfer was skipped, it needs adversarial examples" in line for line in printed) == 2
    assert sum("0 of" in line and "saved images do not fool it" in line for line in printed) == 2
    assert len(rows(out, ATTACK_SAMPLES)) > 0
    names = ("attacks-accuracy-l2-0.5", "attacks-accuracy-l2-1", "attacks-epsilon")
    drawn = content(out / "figures")
    assert set(drawn) == {f"{name}.{kind}" for name in names for kind in ("pdf", "png")} | {"captions.json"}
    assert "3 steps" in json.loads(drawn["captions.json"])["attacks-epsilon"]
    assert manifest(out)["budget"]["queries"] == 10
    shutil.rmtree(out / "figures")
    done("figures", out)
    assert content(out / "figures") == drawn


def test_a_transfer_prints_the_matrix_and_is_drawn(world: Path, tmp_path: Path, done: Done, content: Content) -> None:
    out = tmp_path / "t"
    printed = done("transfer", world / "sl.pt", world / "rl.pt", "--steps", 3, "--samples", 30, "--out", out)
    *lines, path = printed.splitlines()
    assert path == str(out)
    assert len(rows(out, TRANSFER)) == 6
    assert [line.endswith("white-box") for line in lines[:6]] == [False, False, True, False, False, True]
    assert len(lines) == 7
    assert "cosine" in lines[6]
    drawn = content(out / "figures")
    figures = {f"transfer-{what}.{kind}" for what in ("accuracy", "similarity") for kind in ("pdf", "png")}
    assert set(drawn) == figures | {"captions.json"}
    shutil.rmtree(out / "figures")
    done("figures", out)
    assert content(out / "figures") == drawn


def test_more_targets_than_wrong_classes_are_said(run, trained, tmp_path):
    options = ("--attacks", "apgd-t", "--steps", 1, "--samples", 2, "--no-figures", "--out", tmp_path / "out")
    said = "caution: targets is 10, but digits has only 9 wrong classes: attacks aim at these\n"
    assert said in run("attack", trained[0], *options, "--targets", 10).err
    assert said not in run("attack", trained[0], *options, "--targets", 9, "--overwrite").err
