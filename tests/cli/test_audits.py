"""``gradscope audit``, as a user types it: what it prints, what it draws and how it ends."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Done = Callable[..., str]
Run = Callable[..., tuple[int, str, str]]
Content = Callable[[Path], dict[str, bytes]]
MASKED = """
import torch
from pathlib import Path
from gradscope.models import checkpoint


class Masked(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = checkpoint.load(Path({text!r})).build()

    def forward(self, images):
        return 1000 * self.model(images)
"""
QUICK = ("--budget", "quick", "--norm", "linf", "--epsilon", "0.1", "--samples", 40)
FEW = (*QUICK, "--allow-inconclusive")  # rl is right on fewer than 30


@pytest.mark.usefixtures("little_work")
def test_an_audit_prints_its_verdict_and_is_drawn(world: Path, tmp_path: Path, done: Done, content: Content) -> None:
    out = tmp_path / "a"
    printed = done("audit", world / "sl.pt", world / "rl.pt", *FEW, "--fail-on-masking", "--out", out).splitlines()
    assert printed[-1] == str(out)
    audits = json.loads((out / "audit.json").read_text())["audits"]
    for audit in audits:
        cause = f", cause: {audit['causes'][0]}" if audit["causes"] else ""
        assert f"{audit['checkpoint']}: {audit['verdict'].upper()}{cause}" in printed
        bound = f"{100 * audit['robust_accuracy']['upper_bound']:.1f} %"
        assert any("lowest robust accuracy" in line and bound in line and "upper bound" in line for line in printed)
    drawn = content(out / "figures")
    names = (
        "attacks-accuracy",
        "audit-checks",
        "audit-evidence-sl",
        "audit-evidence-rl",
        "audit-robustness",
        "audit-scale",
    )
    assert set(drawn) == {f"{name}.{kind}" for name in names for kind in ("pdf", "png")} | {"captions.json"}
    shutil.rmtree(out / "figures")
    done("figures", out)
    assert content(out / "figures") == drawn


@pytest.mark.usefixtures("little_work")
@pytest.mark.parametrize("gate", [True, False])
def test_masking_shuts_the_gate(
    world: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, gate: bool
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"masked_{gate}.py").write_text(MASKED.format(text=str(world / "sl.pt")))
    model = (f"masked_{gate}:Masked", "--trust-code", "--dataset", "digits")
    ended = run("audit", *model, *QUICK, *["--fail-on-masking"] * gate, "--out", tmp_path / "a")
    assert (ended.code, ended.mistakes) == (3 if gate else 0, "")
    assert "MASKING FOUND, cause: saturation" in ended.out
    assert f"\nnext:    gradscope judge pgd masked_{gate}:Masked --dataset digits --trust-code --norm linf" in ended.err
    assert (tmp_path / "a" / "audit.json").exists()


@pytest.mark.usefixtures("little_work")
@pytest.mark.parametrize(("claim", "code"), [(0.99, 3), (0.001, 0)])
def test_a_claim_is_judged_first_and_is_a_gate(world: Path, tmp_path: Path, run: Run, claim: float, code: int) -> None:
    out = tmp_path / "a"
    ended = run("audit", world / "sl.pt", *QUICK, "--claim", claim, "--out", out)
    printed = ended.out
    assert (ended.code, ended.mistakes) == (code, "")
    verdict = "refuted" if code else "not refuted within this budget"
    assert printed.splitlines()[0].startswith(f"sl: claim of {100 * claim:.4g} % {verdict}: at most ")
    (entry,) = json.loads((out / "audit.json").read_text())["audits"]
    assert next(iter(entry)) == "claim"
    assert entry["claim"] == {"value": claim, "verdict": verdict}
    done = run("report", out)
    assert done[0] == 0
    page = (out / "report.html").read_text()
    assert "The claim that sl keeps " in page[page.index("<h1") : page.index("</h1>")]
    assert f" is {verdict}: at most " in page[page.index("<h1") : page.index("</h1>")]


@pytest.mark.usefixtures("little_work")
@pytest.mark.parametrize(("gate", "code"), [("--fail-on-masking", 4), ("--claim=0.001", 4), ("", 0)])
@pytest.mark.parametrize("allowing", [False, True])
def test_an_undecided_gate_is_no_pass(
    world: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, gate: str, code: int, allowing: bool
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    cut = MASKED.format(text=str(world / "sl.pt")).replace("1000 * self.model(images)", "self.model(images).detach()")
    (tmp_path / "cut.py").write_text(cut)
    model = ("cut:Masked", "--trust-code", "--dataset", "digits")
    flags = [*([gate] if gate else []), *["--allow-inconclusive"] * allowing]
    ended = run("audit", *model, *QUICK, *flags, "--out", tmp_path / "a", "--no-figures")
    assert ended.code == (0 if allowing else code)
    assert "INCONCLUSIVE" in ended.out
    said = ended.mistakes
    assert said.startswith("gradscope: the gate could not be decided (cut:Masked: ") if ended.code else not said
    assert f"figures: none yet; gradscope figures {tmp_path / 'a'} draws them\n" in ended.err
    assert "the same command with --budget full --overwrite" in ended.err


def test_too_few_right_images_are_refused_before_anything_is_attacked(world: Path, tmp_path: Path, run: Run) -> None:
    code, printed, said = run("audit", world / "sl.pt", "--samples", 20, "--out", tmp_path / "a")
    assert (code, printed) == (2, "")
    assert "--samples must include 30 images that sl gets right, as paired tests need, got " in said
    assert "ask for " in said
    assert not (tmp_path / "a").exists()


def test_a_claim_is_a_share(world: Path, tmp_path: Path, run: Run) -> None:
    code, _, said = run("audit", world / "sl.pt", *QUICK, "--claim", 55, "--out", tmp_path / "a")
    assert code == 2
    assert "--claim must be a share of images above 0 and at most 1, e.g. 0.55; got 55" in said


@pytest.mark.usefixtures("little_work")
def test_findings_are_written_for_code_scanning_and_a_model_card(world: Path, tmp_path: Path, done: Done) -> None:
    out, log = tmp_path / "a", tmp_path / "new" / "a.sarif"
    given = ("audit", world / "sl.pt", *QUICK, "--out", out, "--no-figures", "--sarif", log)
    assert done(*given).splitlines()[-2:] == [str(out), str(log)]
    written = json.loads(log.read_text())
    assert written["runs"][0]["properties"]["audits"][0]["checkpoint"] == "sl"
    assert done("report", out, "--sarif", tmp_path / "b.sarif", "--card").splitlines() == [
        str(tmp_path / "b.sarif"),
        str(out / "card.md"),
    ]
    assert json.loads((tmp_path / "b.sarif").read_text()) == written
    assert "\n## sl\n" in (out / "card.md").read_text()
    assert not (out / "report.html").exists()
    done(*given, "--overwrite")
    assert not (out / "card.md").exists(), "it would show other numbers"


def test_a_log_that_cannot_be_written_is_refused_before_anything_is_attacked(
    world: Path, tmp_path: Path, run: Run
) -> None:
    for place, why in ((tmp_path, "the directory"), (world / "file" / "a.sarif", "a writable directory")):
        code, printed, said = run("audit", world / "sl.pt", *QUICK, "--out", tmp_path / "a", "--sarif", place)
        assert (code, printed) == (2, "")
        assert said.startswith("gradscope: --sarif must be ")
        assert why in said
    assert not (tmp_path / "a").exists()


def test_the_schema_is_printed_without_a_model(done: Done) -> None:
    published = Path(__file__).parents[2] / "docs" / "schemas" / "audit.schema.json"
    assert done("audit", "--schema") == published.read_text()
