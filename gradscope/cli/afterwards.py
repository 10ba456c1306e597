"""Say on stderr at the end of a command where the figures are and what to type next."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gradscope.errors import GradscopeError
from gradscope.measure.options import AuditOptions, JudgeOptions, Request
from gradscope.results.manifest import MANIFEST, read_study_manifest

#: With more models than this, a suggested command says CKPT... instead of their names.
_MOST_MODELS = 4


def say(figures: str | None, following: Sequence[str]) -> None:
    """Write where the figures are, if any, and commands to run next, one per line."""
    lines = [] if figures is None else [f"figures: {figures}"]
    lines += [f"{'next:' if not place else '':9}{command}" for place, command in enumerate(following)]
    for line in lines:
        print(line, file=sys.stderr)


def say_after_training(checkpoint: Path, options: Sequence[str]) -> None:
    """Suggest commands for a new checkpoint; ``options`` name the images it was trained on."""
    model = " ".join(map(shlex.quote, [str(checkpoint), *options]))
    say(
        None,
        [
            f"gradscope analyze {model}  # gradients and accuracy along an attack",
            f"gradscope audit {model}  # is its robustness real?",
        ],
    )


def say_after_measuring(request: Request, results: Path) -> None:
    """Say where the figures of a measurement are, and suggest commands that fit its numbers."""
    say(figures_of(results), [*_following(request, results), _report(results)])


def say_after_drawing(directory: Path) -> None:
    """Say where redrawn figures are, and suggest a report."""
    say(figures_of(directory), [_report(directory)])


def say_after_report(page: Path) -> None:
    """Say where the figures for a paper are, and how to open the page."""
    paper = page.parent / "paper"
    say(f"{paper}, with LaTeX tables" if paper.is_dir() else figures_of(page.parent), [f"open {page} in a browser"])


def say_after_study(results: Path, page: Path) -> None:
    """Say where the figures of a study are, and how to open its page or continue it."""
    folders = sorted({path.parent for path in results.glob("*/figures/*.png")})
    named = [str(results / "*" / "figures")] if len(folders) > 1 else list(map(str, folders))
    papers = [str(page.parent / "paper")] if (page.parent / "paper").is_dir() else []
    following = [f"open {page} in a browser"] if page.exists() else []
    if not _is_complete(results):
        following.append("the same command again, which runs only the missing stages")
    say(" and ".join([*named, *papers]) or None, following)


def _is_complete(results: Path) -> bool:
    try:
        return read_study_manifest(results / MANIFEST)[0].complete is True
    except GradscopeError:
        return False


def say_after_claims(table: Path) -> None:
    """Suggest the report that shows the claims."""
    say(None, [_report(table.parent)])


def figures_of(results: Path) -> str:
    """Say where the figures of ``results`` are and how many, or how to draw them."""
    folder = results / "figures"
    count = len(list(folder.glob("*.png")))
    if not count:
        return f"none yet; gradscope figures {shlex.quote(str(results))} draws them"
    return f"{folder} ({count}, each as .pdf and .png)" if count > 1 else f"{folder} (one, as .pdf and .png)"


def _report(results: Path) -> str:
    return f"gradscope report {shlex.quote(str(results))}  # everything on one page, report.html"


def _following(request: Request, results: Path) -> Iterator[str]:
    """Suggest commands that fit the numbers of ``results``."""
    if isinstance(request.options, AuditOptions):
        yield from _after_audit(request, results)
    elif isinstance(request.options, JudgeOptions):
        yield _on_models(request, "audit", request.models, "is the model's robustness real?")
    elif request.options.command in ("analyze", "attack"):
        yield _on_models(request, "audit", request.models, "is this robustness real?")


def _after_audit(request: Request, results: Path) -> Iterator[str]:
    from gradscope.reading import read_json
    from gradscope.results.audits import Audits
    from gradscope.results.schemas import AUDIT_JSON

    audits = Audits.parse(read_json(results / AUDIT_JSON)).audits
    masked = [text for text, entry in zip(request.models, audits, strict=True) if entry.verdict == "masking found"]
    if masked:
        yield _on_models(request, "judge pgd", masked[:1], "which part of PGD does the masking blind?")
    if any(entry.undecided for entry in audits):
        yield "the same command with --budget full --overwrite, or with more --samples  # to decide it"


def _on_models(request: Request, command: str, models: Sequence[str], why: str) -> str:
    """Write a command on ``models``, with the options for the models, their images and the threat model."""
    words = [command, *(map(shlex.quote, models) if len(models) <= _MOST_MODELS else ["CKPT..."])]
    return f"gradscope {' '.join([*words, *_options(request, models)])}  # {why}"


def _options(request: Request, models: Sequence[str]) -> Iterator[str]:
    """List the options of ``request`` that another command needs to use the same models, images and threat model."""
    given: dict[str, Any] = {
        name: value
        for part in (request.data, request.foreign)
        for name, value in part.model_dump(exclude={"download", "weights"}).items()
        if value not in (None, False, ())
    }
    weights = dict(zip((text for text in request.models if _is_foreign(text)), request.foreign.weights, strict=False))
    ball = {name: getattr(request.options, name, None) for name in ("norm", "epsilon")}
    usual = {name: field.default for name, field in type(request.options).model_fields.items()}
    given |= {name: value for name, value in ball.items() if value not in (None, usual.get(name))}
    for name, value in given.items():
        yield f"--{name.replace('_', '-')}"
        if value is not True:
            yield shlex.quote(",".join(map(str, value)) if isinstance(value, tuple) else str(value))
    for text in models:
        if text in weights:
            yield f"--weights {shlex.quote(str(weights[text]))}"


def _is_foreign(text: str) -> bool:
    from gradscope.models.references import parse_reference

    return parse_reference(text).is_foreign
