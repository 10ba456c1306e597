"""What holds for the whole command line: help, completion, processes of their own, from training to figures."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gradscope
from gradscope.measure.options import COMMANDS
from gradscope.models import checkpoint as checkpoints
from gradscope.results.schemas import STEPS
from gradscope.results.tables import read_table

Done = Callable[..., str]
QUICK = ("--steps", 2, "--samples", 6, "--metrics", "loss")


def shell(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
    )


def test_version_and_help(done: Done) -> None:
    assert done("--version") == f"gradscope {gradscope.__version__}\n"
    overview = done("--help")
    assert all(
        command in overview
        for command in ("train", "analyze", "landscape", "attack", "transfer", "study", "claims", "figures", "list")
    )
    assert done() == overview
    words = " ".join(overview.split())
    assert all(f"{name} {' '.join(kind.summary.split())}" in words for name, kind in COMMANDS.items()), "none is cut"
    assert "..." not in words.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train", ["--mode", "--paper", "--set", "KEY=VALUE", "phases.0.exploration=0.3", "--resume", "--device"]),
        ("analyze", ["CKPT", "--metrics", "8/255", "pgd-paper", "--trust-code", "--weights", "reports/FIRST-CKPT"]),
        ("landscape", ["CKPT", "input|weights", "--towards", "--epochs", "re-estimated", "shared", "--resume"]),
        ("attack", ["CKPT", "--queries", "--epsilons", "--surrogate", "--no-cascade", "--save-images", "--resume"]),
        ("transfer", ["CKPT", "pgd-paper", "8/255", "--samples", "--resume", "reports/FIRST-CKPT-transfer"]),
        ("audit", ["CKPT", "quick", "--surrogate", "--fail-on-masking", "--resume", "reports/FIRST-CKPT-audit"]),
        ("judge", ["ATTACK", "CKPT", "--trust-code", "--fail-on-blind", "--resume", "reports/FIRST-CKPT-judge"]),
        ("claims", ["DIR...", "--out", "reports/FIRST-DIR-claims"]),
        ("figures", ["DIR", "files"]),
        ("study", ["RECIPE", "--dry-run", "--seeds", "ray", "--address", "KEY=VALUE", "checkpoints/RECIPE"]),
        ("list", ["datasets", "architectures", "metrics", "attacks", "objectives", "modes"]),
    ],
)
def test_each_command_explains_itself(command: str, words: list[str], done: Done) -> None:
    text = "".join(done(command, "--help").split())  # lines break after a hyphen
    assert all(word in text for word in words)


def test_help_imports_neither_torch_nor_the_drawing() -> None:
    script = (
        "import sys\nfrom gradscope.cli import main\n"
        "for line in ('--help', 'analyze --help', 'claims --help', '--version', 'list metrics'):\n"
        "    try:\n        main(line.split())\n    except SystemExit:\n        pass\n"
        "print([name for name in ('torch', 'pandas', 'matplotlib', 'scipy', 'sklearn') if name in sys.modules])\n"
    )
    ended = shell("-c", script)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[-1] == "[]"


def test_openmp_is_told_to_sleep_where_the_user_has_not_decided() -> None:
    """By the command line alone, and before torch is loaded; not by the library."""
    script = (
        "import os, gradscope, gradscope.cli\nbefore = dict(os.environ)\n"
        "try:\n    gradscope.cli.main(['--version'])\nexcept SystemExit:\n    pass\n"
        "print(dict(os.environ.items() - before.items()))\n"
    )
    for given, changed in (
        ({}, {"GOMP_SPINCOUNT": "3000"}),
        ({"GOMP_SPINCOUNT": "7"}, {}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {}),
    ):
        command = ["env", "-u", "GOMP_SPINCOUNT", "-u", "OMP_WAIT_POLICY"]
        command += [*(f"{name}={value}" for name, value in given.items()), sys.executable, "-c", script]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.stdout.splitlines()[-1] == str(changed), ended.stderr


def test_openmp_reads_what_the_command_line_sets() -> None:
    script = "import gradscope.cli\ntry:\n    gradscope.cli.main(['list'])\nexcept SystemExit:\n    import torch\n"
    command = ["env", "-u", "GOMP_SPINCOUNT", "-u", "OMP_WAIT_POLICY", "OMP_DISPLAY_ENV=verbose"]
    ended = subprocess.run([*command, sys.executable, "-c", script], capture_output=True, text=True)
    if "GOMP_" not in ended.stderr:
        pytest.skip("torch uses another OpenMP than GNU's here")
    assert "GOMP_SPINCOUNT = '3000'" in ended.stderr


def test_the_shell_completes_commands_and_options() -> None:
    environment = {"_GRADSCOPE_COMPLETE": "complete_bash", "_TYPER_COMPLETE_ARGS": "gradscope ana"}
    ended = shell(
        "-c", "from gradscope.cli import main; main()", **environment, COMP_WORDS="gradscope ana", COMP_CWORD="1"
    )
    assert ended.stdout.split() == ["analyze"]


def test_the_shell_completes_the_names_of_attacks() -> None:
    words = "gradscope attack --attacks pgd,apgd-"
    environment = {"_GRADSCOPE_COMPLETE": "complete_bash", "_TYPER_COMPLETE_ARGS": words}
    ended = shell("-c", "from gradscope.cli import main; main()", **environment, COMP_WORDS=words, COMP_CWORD="3")
    assert ended.stdout.split() == ["pgd,apgd-ce", "pgd,apgd-dlr", "pgd,apgd-t"]


def test_a_process_of_its_own(world: Path, tmp_path: Path) -> None:
    """The path at the end of stdout; on stderr no progress, but what to do next."""
    ended = shell("-m", "gradscope", "analyze", world / "sl.pt", *QUICK, "--out", tmp_path / "a")
    assert ended.returncode == 0
    assert ended.stderr.splitlines() == [
        f"figures: {tmp_path / 'a' / 'figures'} (2, each as .pdf and .png)",
        f"next:    gradscope audit {world / 'sl.pt'}  # is this robustness real?",
        f"         gradscope report {tmp_path / 'a'}  # everything on one page, report.html",
    ]
    assert ended.stdout.splitlines()[-1] == str(tmp_path / "a")
    ended = shell("-m", "gradscope", "train", "--mode", "sl", "--epochs", 0)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert len(ended.stderr.splitlines()) == 1


def test_our_own_fault_is_a_traceback_and_exit_code_1(world: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom gradscope.cli import main\nfrom gradscope.measure import analyze\n"
        "def fail(*arguments, **options):\n    raise RuntimeError('a fault of ours')\n"
        "analyze.measure_trajectory = fail\nmain(sys.argv[1:])\n"
    )
    ended = shell("-c", script, "analyze", world / "sl.pt", *QUICK, "--out", tmp_path / "a")
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback")
    assert ended.stderr.splitlines()[-1] == "RuntimeError: a fault of ours"
    assert ended.stdout == ""


@pytest.mark.real_images
def test_real_photographs_from_training_to_figures(cifar10_folder: Path, tmp_path: Path, done: Done) -> None:
    source = ("--dataset", "cifar10", "--data-root", cifar10_folder)
    checkpoint, results = tmp_path / "rl-adv.pt", tmp_path / "results"
    assert str(checkpoint) in done("train", "--mode", "rl-adv", *source, "--epochs", 2, "--out", checkpoint)
    assert checkpoints.load(checkpoint).spec.architecture == "cnn4"
    asked = ("--attack", "pgd,pgd-paper", "--metrics", "cosine,norm,entropy", "--steps", 3, "--samples", 40)
    done("analyze", checkpoint, *asked, "--out", results)
    steps = read_table(results / STEPS.file, STEPS)
    assert set(steps["dataset"]) == {"cifar10"}
    assert set(steps["attack"]) == {"pgd", "pgd-paper"}
    assert set(steps["metric"]) == {"cosine", "norm", "entropy", "accuracy"}
    assert (steps["n"] + steps["undefined"] == 40).all()
    assert (results / "figures" / "steps-cosine.pdf").read_bytes().startswith(b"%PDF")


def test_a_command_that_sigterm_ends_says_so_and_resumes(tmp_path: Path, world: Path, done: Done, content) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    attack = ("attack", world / "sl.pt", "--attacks", "square", "--queries", 40, "--batch-size", 8, "--no-figures")
    command = [sys.executable, "-m", "gradscope", *attack, "--out", out]
    with subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True) as begun:
        while begun.poll() is None and not list(out.glob(".tiles/*.pt")):
            time.sleep(0.01)
        begun.send_signal(signal.SIGTERM)
        assert begun.stderr is not None
        assert "gradscope: interrupted; results so far are kept, and --resume continues" in begun.stderr.read()
        assert begun.wait(60) == 128 + signal.SIGTERM
    done(*attack, "--resume", "--out", out)
    done(*attack, "--out", whole)
    assert content(out)["samples.csv"] == content(whole)["samples.csv"]


def test_a_command_that_cannot_be_resumed_does_not_offer_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]
) -> None:
    def interrupted(directory: Path, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gradscope.figures.draw.draw", interrupted)
    ended = run("figures", tmp_path)
    assert (ended.code, ended.err) == (130, "gradscope: interrupted\n")
