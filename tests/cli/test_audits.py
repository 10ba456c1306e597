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


def test_an_audit_prints_its_verdict_and_is_drawn(world: Path, tmp_path: Path, done: Done, content: Content) -> None:
    out = tmp_path / "a"
    printed = done("audit", world / "sl.pt", world / "rl.pt", *QUICK, "--fail-on-masking", "--out", out).splitlines()
    assert printed[-1] == str(out)
    audits = json.loads((out / "audit.json").read_text())["audits"]
    for audit in audits:
        assert f"{audit['checkpoint']}: {audit['verdict'].upper()}" in printed
        bound = f"{100 * audit['robust_accuracy']['upper_bound']:.1f} %"
        assert any("lowest robust accuracy" in line and bound in line and "upper bound" in line for line in printed)
    drawn = content(out / "figures")
    names = ("attacks-accuracy", "audit-checks", "audit-evidence-sl", "audit-evidence-rl", "audit-robustness")
    assert set(drawn) == {f"{name}.{kind}" for name in names for kind in ("pdf", "png")} | {"captions.json"}
    shutil.rmtree(out / "figures")
    done("figures", out)
    assert content(out / "figures") == drawn


@pytest.mark.parametrize("gate", [True, False])
def test_masking_shuts_the_gate(
    world: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, gate: bool
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"masked_{gate}.py").write_text(MASKED.format(text=str(world / "sl.pt")))
    model = (f"masked_{gate}:Masked", "--trust-code", "--dataset", "digits")
    code, printed, said = run("audit", *model, *QUICK, *["--fail-on-masking"] * gate, "--out", tmp_path / "a")
    assert (code, said) == (3 if gate else 0, "")
    assert "MASKING FOUND, cause: saturation" in printed
    assert (tmp_path / "a" / "audit.json").exists()
