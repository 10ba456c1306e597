import csv
import gzip
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from gradscope.claims.table import TESTS, claim_rows, write_claims
from gradscope.claims.verdicts import STATEMENTS
from gradscope.errors import GradscopeError
from gradscope.results.schemas import CLAIMS
from gradscope.results.tables import read_table

REPORTS = Path(__file__).parents[2] / "reports"
VERDICTS = {"supported", "not supported", "not tested"}
FLAT = {"sl": [1.0, 1.0, 0.0], "rl": [1.0, 0.0, 0.0]}


def accuracies(attack="pgd", point="clean"):
    return {(label, attack, "accuracy", point): values for label, values in FLAT.items()}


def test_every_claim_has_a_row_however_little_there_is(directories, tmp_path):
    made = directories()
    made.analysis(accuracies())
    for rows in (claim_rows(made.all), claim_rows([]), claim_rows([tmp_path / "absent"])):
        assert list(dict.fromkeys(row["claim"] for row in rows)) == list(STATEMENTS)
        assert {row["verdict"] for row in rows} <= VERDICTS
        assert all(row["why"] and "\n" not in row["why"] for row in rows)
        assert all(row["statement"] == STATEMENTS[row["claim"]] for row in rows)
    assert len(TESTS) == len(STATEMENTS)


def test_without_results_nothing_is_tested(tmp_path):
    rows = claim_rows([tmp_path / "absent"])
    assert {row["verdict"] for row in rows} == {"not tested"}
    assert {(row["dataset"], row["arch"]) for row in rows} == {("", "")}
    assert all("absent was left out, as it has no manifest.json" in row["why"] for row in rows)


def test_it_is_written_as_the_table_says(directories, tmp_path):
    made = directories()
    made.analysis(accuracies())
    path = write_claims(made.all, tmp_path)
    assert path == tmp_path / "claims.csv"
    frame = read_table(path, CLAIMS)
    assert list(frame.columns) == CLAIMS.names
    assert len(frame) == len(claim_rows(made.all))
    assert write_claims(made.all, tmp_path / "other.csv") == tmp_path / "other.csv"
    assert (tmp_path / "other.csv").read_bytes() == path.read_bytes()


def test_each_data_set_and_architecture_has_its_own_claims(directories):
    made = directories()
    made.analysis(accuracies())
    made.dataset, made.arch = "imagenet100", "resnet18"
    made.analysis(accuracies(), name="other")
    rows = claim_rows(made.all)
    groups = list(dict.fromkeys((row["dataset"], row["arch"]) for row in rows))
    assert groups == [("cifar10", "cnn4"), ("imagenet100", "resnet18")]
    papers = {row["dataset"]: row["paper"] for row in rows if row["claim"] == "C1"}
    assert papers == {"cifar10": "about 5 % -> 55 % (cnn6)", "imagenet100": "5 % -> 18 % (cnn6)"}


def test_foreign_models_are_no_part_of_the_claims(directories):
    made = directories(**{"timm:one": ("foreign", None)})
    made.analysis({("timm:one", "pgd", "accuracy", "clean"): [1.0, 0.0]})
    rows = claim_rows(made.all)
    assert {row["verdict"] for row in rows} == {"not tested"}
    assert {row["dataset"] for row in rows} == {"cifar10"}


def test_values_that_are_not_finite_break_nothing(directories):
    made = directories()
    nothing = [math.nan] * 8
    cells = {}
    for label in ("sl", "rl"):
        for metric, point in (("norm", "clean"), ("margin", "clean"), ("entropy", "clean"), ("cosine", "path")):
            cells[label, "pgd", metric, point] = nothing if label == "sl" else [math.inf] * 8
        cells[label, "pgd", "accuracy", "clean"] = nothing
    made.analysis(cells)
    rows = claim_rows(made.all)
    left = [row for row in rows if row["claim"] in ("C3", "C4", "C5") and "8 more" in row["why"]]
    assert len(left) == 4
    assert {row["verdict"] for row in left} == {"not tested"}


def test_a_file_that_cannot_be_written(directories, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GradscopeError, match="out: "):
        write_claims([], tmp_path / "file" / "claims.csv")


# The published measurements: every number again from the CSV, read and counted another way


def published(name):
    """(checkpoint, attack, metric, point) to image to value, by the csv module alone."""
    path = REPORTS / name / "samples.csv.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    found = defaultdict(dict)
    with gzip.open(path, "rt", newline="") as file:
        for row in csv.DictReader(file):
            key = row["checkpoint"], row["attack"], row["metric"], row["point"]
            found[key][int(row["index"])] = float(row["value"])
    return found


@pytest.fixture(scope="module")
def real():
    names = ("cifar10-jpeg-cnn4", "cifar10-jpeg-cnn4-surroundings", "cifar10-jpeg-cnn4-landscape")
    samples = published(names[0])
    return claim_rows([REPORTS / name for name in names]), samples


def test_real_accuracies(real, one):
    rows, samples = real
    verdicts = {}
    for attack, words in (("pgd-paper", "pgd-paper"), ("pgd", "exact PGD")):
        sl, rl = (samples[mode, attack, "accuracy", "final"] for mode in ("sl", "rl"))
        row = one(rows, "C1", words)
        gained = sum(rl[image] == 1 and sl[image] == 0 for image in sl)
        lost = sum(rl[image] == 0 and sl[image] == 1 for image in sl)
        assert row["value"] == pytest.approx((gained - lost) / len(sl))
        test = stats.binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
        assert row["p_value"] >= test
        assert row["ci_low"] < row["value"] < row["ci_high"]
        verdicts[attack] = row["verdict"]
    assert verdicts == {"pgd-paper": "supported", "pgd": "not supported"}
    clean = {mode: np.mean(list(samples[mode, "pgd", "accuracy", "clean"].values())) for mode in ("sl", "rl")}
    assert one(rows, "C2")["value"] == pytest.approx(clean["rl"] - clean["sl"])


def test_real_gradients(real, one):
    rows, samples = real
    for claim, metric, point, words in (
        ("C4", "cosine", "path", ("cosine", "along pgd,")),
        ("C4", "sign", "path", ("sign", "along pgd-paper,")),
        ("C5", "entropy", "final", ("at the end of pgd-paper",)),
        ("C3", "norm", "clean", ("difference of the means",)),
    ):
        attack = "pgd-paper" if "pgd-paper" in words[-1] else "pgd"
        sl, rl = (samples[mode, attack, metric, point] for mode in ("sl", "rl"))
        images = [image for image in sl if not math.isnan(sl[image] - rl[image])]
        test = stats.ttest_rel([rl[image] for image in images], [sl[image] for image in images])
        row = one(rows, claim, *words)
        assert row["n"] == len(images)
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(test.confidence_interval(0.95)), rel=1e-6)
    sl, rl = (samples[mode, "pgd", "norm", "clean"] for mode in ("sl", "rl"))
    ratios = sorted(math.log(rl[image] / sl[image]) for image in sl)
    assert one(rows, "C3", "clean image", "median")["value"] == pytest.approx((ratios[249] + ratios[250]) / 2)


def test_real_landscapes(real, one):
    rows, _ = real
    samples = published("cifar10-jpeg-cnn4-surroundings")
    for metric in ("roughness", "sharpness", "radius-adversarial"):
        sl, rl = (samples[mode, "pgd", metric, "around"] for mode in ("sl", "rl"))
        test = stats.ttest_rel([rl[image] for image in sl], list(sl.values()))
        row = one(rows, "C6", metric)
        assert row["n"] == 100
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(test.confidence_interval(0.95)), rel=1e-6)


def test_the_real_hypothesis(real, one):
    rows, samples = real

    def of(metric, point="clean", attack="pgd-paper", mode="rl"):
        return samples[mode, attack, metric, point]

    saturated = sum(value > 24 * math.log(2) for value in of("margin").values())
    assert one(rows, "H1", "above 16.6")["value"] == pytest.approx(saturated / 500)
    tiny = [image for image, value in of("norm").items() if value < 1e-6]
    assert one(rows, "H2", "1e-06")["value"] == pytest.approx(len(tiny) / 500)
    right = [image for image, value in of("accuracy").items() if value == 1]
    survivors = [image for image in right if of("accuracy", "final")[image] == 1]
    fallen = [image for image in right if image not in survivors]
    shares = [np.mean([of("norm")[image] < 128e-6 for image in group]) for group in (survivors, fallen)]
    row = one(rows, "H3", "norm")
    assert (row["value"], row["n"]) == (pytest.approx(shares[0] - shares[1]), len(right))
    assert f"{len(survivors)} survivors" in row["why"]
    lost = [image for image in of("accuracy", "final") if of("accuracy", "final")[image] == 1]
    kept = sum(of("accuracy", "final", "pgd")[image] for image in of("accuracy", "final"))
    assert one(rows, "H4", "exact PGD")["value"] == pytest.approx((len(lost) - kept) / 500)
    assert all(row["verdict"] == "supported" for row in rows if row["claim"] in ("H1", "H2", "H3", "H5"))
    assert one(rows, "H6")["verdict"] == "not tested"
