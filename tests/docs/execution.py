"""Running what a page shows: smaller where it shows no output, with stand-ins for what takes hours or is not here."""

import contextlib
import io
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import gradscope as gs
from gradscope.auditing.budgets import BUDGETS, ScaleBudget
from gradscope.cli import main
from gradscope.config import Budget
from gradscope.results.schemas import PAGE
from tests.docs.blocks import ROOT, Command

#: Commands that are parsed and not run, and why: a pattern for the command line's text.
PARSED = {
    r"--device cuda|--devices [2-9]|^torchrun|^fabric": "needs a GPU or several processes; see tests/cli/test_ranks.py",
    r"--engine ray|^ray |^srun ": "needs a Ray cluster, which tests/study/test_cluster.py starts",
    r"--paper|--budget full|autoattack": "takes hours, or minutes",
    r"--download|fashion-mnist|cifar100|tiny-imagenet|imagenet100": "needs a data set that is not here",
    r"^gradscope study .*(?<!--dry-run)$": "takes minutes to days: the recipe is read and validated",
    r"^gradscope (report|figures|claims) reports/(cifar|gpu)": "reads results that are published with the repository",
    r"--space weights.*--adversarial|--curve|--layers|--epochs kept|--plane": "takes seconds; tests/measure runs it",
}
#: What is no command of gradscope: what must be true of it is tested by :func:`check_other`.
OTHERS = (
    "make",
    "pip",
    "git",
    "cd",
    "export",
    "python",
    "pytest",
    ".venv/bin/python",
    ".venv/bin/pytest",
    "ray",
    "srun",
)

#: How often a page runs a command in `make test`: later ones end when all that they are given has been checked.
MOST = {"audit": 1, "judge": 1, "train": 1, "landscape": 2, "spectrum": 2, "attack": 2, "transfer": 1, "analyze": 2}
#: The functions that a page calls once in `make test`.
ONCE = ("audit", "judge", "train")

#: The most of each option where a block shows no output, by command; what the page does not give is added.
SMALLER: dict[str, dict[str, int]] = {
    "train": {"epochs": 2, "train_samples": 100},
    "analyze": {"samples": 12, "steps": 3},
    "attack": {"samples": 12, "steps": 3, "queries": 20, "restarts": 2, "targets": 2},
    "transfer": {"samples": 12, "steps": 3},
    "audit": {"samples": 12},
    "judge": {"samples": 36},
    "landscape": {"points": 3, "images": 2},
    "spectrum": {"images": 6, "iterations": 4, "probes": 2, "eigenvalues": 2},
}
_CALLED = {"trace": "analyze"}


def smaller(command: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is ``given`` of the options of a command, none beyond :data:`SMALLER`, and what it does not give."""
    most = dict(SMALLER.get(command, {}))
    if "index" in given:
        most.pop("images", None)
    if "line" in given and "points" in most:
        most["points"] = 4
    if "phases" in given or "config" in given:
        most.pop("epochs", None)
    return {**given, **{name: min(int(given.get(name, value)), value) for name, value in most.items()}}


def reason_to_parse(command: Command) -> str | None:
    return next((why for pattern, why in PARSED.items() if re.search(pattern, command.text)), None)


class Page:
    """Runs the blocks of one page. ``thoroughly``: everything is run; else no more than :data:`MOST` says."""

    def __init__(self, names: dict[str, Any], *, thoroughly: bool, trains: bool = True) -> None:
        self.names, self.thoroughly = names, thoroughly
        # One page trains in `make test`; the others take the prepared checkpoints.
        self.results: dict[str, Any] = {} if thoroughly or trains else {"gs.train": names["model"]}
        self.most = MOST if trains else MOST | {"train": 0}
        self.runs: Counter[str] = Counter()

    def run(self, command: Command) -> None:
        """Run a command in this process, and hold what it prints against the page."""
        words = list(command.words)
        with pytest.MonkeyPatch.context() as patch:
            while re.match(r"[A-Z_]+=", words[0]):
                name, _, value = words.pop(0).partition("=")
                patch.setenv(name, value)
            if words[0] in OTHERS:
                check_other(command, words)
                return
            if words[0] in ("torchrun", "fabric"):
                words = ["gradscope", *words[next(i for i, word in enumerate(words) if "gradscope" in word) + 1 :]]
            assert words[0] == "gradscope", f"{command.where}: {command.text}: what is {words[0]}?"
            if reason_to_parse(command) or not self._may_run(words[1:]):
                parse(command, words[1:])
                return
            shown = command.output if self.thoroughly or words[1] not in ONCE else None
            if shown is None:
                with tiny_budgets():
                    code, out, err = call(smaller_line(words[1:]))
            else:
                _make_room(words)
                code, out, err = call(words[1:])
        gate = re.search(r"--claim|--fail-on", command.text)
        said = f"{command.where}: {command.text}: {code}\n{out}\n{err}"
        assert code in ((0, 3, 4) if gate else (0,)), said
        if shown is not None:
            assert_alike(out, shown, command.where)  # stderr has hints

    def run_python(self, text: str, where: str, output: str | None) -> None:
        """Run a block of Python among the names of the page, and hold what it prints against the page."""
        shown = output if self.thoroughly or not re.search(rf"gs\.({'|'.join(ONCE)})\(", text) else None
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.nullcontext() if shown is not None else self._smaller():
            exec(compile(text, where, "exec"), self.names)
        if shown is not None:
            assert_alike(out.getvalue(), shown, where)

    def _may_run(self, words: list[str]) -> bool:
        """Whether a command is to be run: in `make test` no page is made, and what later commands read is."""
        name, quick = words[0], {"--out", "--sarif", "--card", "--schema"} & set(words)
        if name == "report":
            return self.thoroughly or bool(quick)
        self.runs[name] += 1
        if name == "train":
            quick = set()
        return self.thoroughly or bool(quick) or name not in MOST or self.runs[name] <= self.most[name]

    @contextlib.contextmanager
    def _smaller(self) -> Iterator[None]:
        """Let the functions of gradscope do no more than :data:`SMALLER` says."""
        with pytest.MonkeyPatch.context() as patch:
            for name in (*SMALLER, "trace"):
                if name != "analyze":
                    patch.setattr(gs, name, self._limited(name, getattr(gs, name)), raising=False)
            if not self.thoroughly:
                patch.setattr("gradscope.reporting.page.write_report", lambda directory: directory / PAGE)
            with tiny_budgets():
                yield

    def _limited(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            options = smaller(_CALLED.get(name, name), options)
            options |= {"allow_inconclusive": True} if name == "audit" else {}
            before = self.results.get(f"gs.{name}")
            if self.thoroughly or name not in ONCE or before is None:
                before = self.results[f"gs.{name}"] = function(*given, **options)
                return before
            with pytest.MonkeyPatch.context() as patch, contextlib.suppress(_ParsedError):
                patch.setattr("gradscope.api.in_memory.run", _stop)
                patch.setattr("gradscope.api.training.run_training", _stop)
                function(*given, **options)
            return before

        return call


@contextlib.contextmanager
def tiny_budgets() -> Iterator[None]:
    """Budgets of audits and judgements with next to no work."""
    attacks = Budget(steps=2, restarts=2, smoothing=2, targets=2, queries=4, noise_points=2)
    scale = ScaleBudget(4, 3, 1, ("pgd",))
    with pytest.MonkeyPatch.context() as patch:
        for name, budget in [*BUDGETS.items()]:
            names = tuple(one for one in budget.names if one not in ("fab", "fab-t", "apgd-dlr"))
            less = {"attacks": attacks, "probed": 8, "directions": 2, "draws": 2, "scale": scale, "names": names}
            patch.setitem(BUDGETS, name, replace(budget, **less))
        yield


def _make_room(words: list[str]) -> None:
    """Take away a prepared checkpoint that a command is shown to write."""
    if "--out" in words and (out := Path(words[words.index("--out") + 1])).is_symlink():
        out.unlink()


def smaller_line(arguments: list[str]) -> list[str]:
    """A command line with the numbers of :data:`SMALLER`, without figures, over what an earlier block has left."""
    name = arguments[0]
    if name not in SMALLER:
        return arguments
    flags = {one[2:].replace("-", "_"): index for index, one in enumerate(arguments) if one.startswith("--")}
    given = {key: arguments[index + 1] if index + 1 < len(arguments) else "" for key, index in flags.items()}
    numbers = {key: value for key, value in given.items() if key not in SMALLER[name] or value.isdecimal()}
    result = list(arguments)
    for key, value in smaller(name, numbers).items():
        if key not in SMALLER[name]:
            continue
        if key in flags:
            result[flags[key] + 1] = str(value)
        else:
            result += [f"--{key.replace('_', '-')}", str(value)]
    extra = [] if name == "train" or "--no-figures" in result else ["--no-figures"]
    extra += ["--allow-inconclusive"] if name == "audit" and "--allow-inconclusive" not in result else []
    return [*result, *extra, *([] if {"--resume", "--overwrite"} & set(result) else ["--overwrite"])]


def call(arguments: list[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
        main(arguments)
    code = left.value.code or 0
    assert isinstance(code, int)
    return code, out.getvalue(), err.getvalue()


class _ParsedError(Exception):
    """A command line that was read to its end."""


def _stop(*_: Any, **__: Any) -> Any:
    raise _ParsedError


def parse(command: Command, arguments: list[str]) -> None:
    """Read a command line with all of its options, and stop before anything is loaded or made."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradscope.cli.measuring.refuse", _stop)
        patch.setattr("gradscope.training.request.TrainingRequest.check", _stop)
        patch.setattr("gradscope.study.studies.plan_study", _stop)
        patch.setattr("gradscope.reporting.page.write_report", _stop)
        patch.setattr("gradscope.figures.draw.draw", _stop)
        patch.setattr("gradscope.claims.table.judge", _stop)
        patch.setattr("gradscope.study.engines.workers.start_server", lambda *_: None)
        # The published results lie in the repository, not in the folder that the page's commands run in.
        for name in ("gradscope.cli.drawing", "gradscope.cli.claims"):
            patch.setattr(sys.modules[name], "require_directory", _require)
        err = io.StringIO()
        try:
            with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
                main(arguments)
        except _ParsedError:
            return
        except SystemExit as left:
            raise AssertionError(f"{command.where}: {command.text}: {left.code} {err.getvalue()}") from None


def _require(path: Path) -> None:
    assert path.is_dir() or (ROOT / path).is_dir(), f"{path} is not there"


def check_other(command: Command, words: list[str]) -> None:
    """Hold a command that is not gradscope's against the repository: targets, extras, files, modules."""
    name, rest = words[0], [word for word in words[1:] if not word.startswith("-")]
    if name == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        wanted = [word for word in rest if "=" not in word]
        assert set(wanted) <= targets, f"{command.where}: make has no {set(wanted) - targets}"
    elif name == "pip":
        extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
        for extra in re.findall(r"\[([\w,]+)\]", command.text):
            assert set(extra.split(",")) <= extras, f"{command.where}: there is no extra {extra}"
    elif name.endswith(("python", "pytest")):
        modules = [words[i + 1] for i, word in enumerate(words) if word == "-m" and i + 1 < len(words)]
        files = [Path(word) for word in rest if word.endswith(".py")]
        found = [Path(*one.split(".")) for one in modules if one and one not in ("pip", "venv", "cuda", "slow")]
        for path in files:
            assert (ROOT / path).exists(), f"{command.where}: there is no {path}"
        for path in found:
            assert (ROOT / path).exists() or (ROOT / f"{path}.py").exists(), f"{command.where}: there is no {path}"


_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")


def assert_alike(printed: str, shown: str, where: str) -> None:
    """Hold what was printed against what a page shows: the words alike, each number near the one shown.

    Another processor rounds otherwise, so that a model it trains differs by an image or two. A last line of three dots
    stands for what is left out.
    """
    lines = shown.splitlines()
    if lines[-1:] == ["..."]:
        shown, printed = ("\n".join(text.splitlines()[: len(lines) - 1]) for text in (shown, printed))
    texts = [" ".join(_NUMBER.sub("#", text).split()) for text in (printed, shown)]
    assert texts[0] == texts[1], f"{where}: the page shows\n{shown}\nand this was printed\n{printed}"
    numbers = [[float(one.replace(",", "")) for one in _NUMBER.findall(text)] for text in (printed, shown)]
    for found, said in zip(*numbers, strict=True):
        assert abs(found - said) <= max(5.0, 0.25 * abs(said)), f"{where}: {said:g} is shown, {found:g} was printed"
