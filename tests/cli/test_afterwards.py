"""What a command says when it has ended: the commands that it offers see the same models, images and ball."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from gradscope.cli.afterwards import say_after_measuring
from gradscope.measure.options import AnalyzeOptions, Request
from gradscope.measure.options.common import ForeignOptions
from gradscope.options import DataOptions


def offered(capsys: pytest.CaptureFixture[str], results: Path, *models: str, **parts: Any) -> list[str]:
    """The words of the first command that is offered after an analysis."""
    options = AnalyzeOptions.parse(parts.pop("options", {}))
    say_after_measuring(Request(options=options, models=models, **parts), results)
    out, err = capsys.readouterr()
    assert out == ""
    line = next(line for line in err.splitlines() if line.startswith("next:"))
    return shlex.split(line.removeprefix("next:"), comments=True)


def test_a_foreign_model_is_named_with_all_that_it_takes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    weights = tmp_path / "my weights.pt"
    words = offered(
        capsys,
        tmp_path,
        "ours.pt",
        "nets:make(name='x')",
        data=DataOptions(dataset="cifar10", download=True),
        foreign=ForeignOptions.parse({"weights": [weights], "mean": "0.5,0.4,0.3", "trust_code": True}),
        options={"norm": "linf", "epsilon": "8/255", "steps": 7},
    )
    assert words == [
        *("gradscope", "audit", "ours.pt", "nets:make(name='x')", "--dataset", "cifar10", "--mean", "0.5,0.4,0.3"),
        *("--trust-code", "--norm", "linf", "--epsilon", "8/255", "--weights", str(weights)),
    ]


def test_many_models_are_not_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert offered(capsys, tmp_path, *(f"{number}.pt" for number in range(5))) == ["gradscope", "audit", "CKPT..."]
    assert offered(capsys, tmp_path, "a b.pt") == ["gradscope", "audit", "a b.pt"]


@pytest.mark.parametrize(
    ("drawn", "said"),
    [
        (0, "none yet; gradscope figures {quoted} draws them"),
        (1, "{folder}/figures (one, as .pdf and .png)"),
        (3, "{folder}/figures (3, each as .pdf and .png)"),
    ],
)
def test_figures_are_counted(capsys: pytest.CaptureFixture[str], tmp_path: Path, drawn: int, said: str) -> None:
    folder = tmp_path / "a b"
    (folder / "figures").mkdir(parents=True)
    for number in range(drawn):
        (folder / "figures" / f"{number}.png").touch()
    say_after_measuring(Request(options=AnalyzeOptions(), models=("a.pt",)), folder)
    assert capsys.readouterr().err.splitlines()[0] == "figures: " + said.format(folder=folder, quoted=f"'{folder}'")
