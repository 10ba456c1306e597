"""Write a robustness card in Markdown, an appendix to a model card, from files alone.

The block at its top is the ``model-index`` that the Hugging Face Hub reads.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from gradscope.errors import GradscopeError
from gradscope.figures.draw import describe_attack
from gradscope.reading import read_json
from gradscope.results.audits import NO_PROOF, NONE_FOUND, AuditOf, Audits
from gradscope.results.cautions import cautions
from gradscope.results.files import atomic
from gradscope.results.manifest import MANIFEST, Examined, Manifest, Provenance, read_manifest
from gradscope.results.schemas import ATTACKS, AUDIT_JSON, CARD, SUMMARY, Table
from gradscope.results.tables import find_table, read_table

#: Characters with a meaning in Markdown or HTML.
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~])")
#: Characters that YAML requires to be escaped.
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff]")


class Bound(NamedTuple):
    """An upper bound of the robust accuracy: its ball, its attacks and its interval."""

    norm: str
    epsilon: float
    under: str
    value: float
    ci_low: float
    ci_high: float
    n: int

    @property
    def ball(self) -> str:
        """The threat model in words."""
        return f"{self.norm}, epsilon {self.epsilon:.4g}"


@dataclass(frozen=True)
class Part:
    """The results of one command."""

    manifest: Manifest
    raw_manifest: Mapping[str, Any]
    audits: tuple[AuditOf, ...]
    tables: Mapping[str, pd.DataFrame]


@dataclass
class CardModel:
    """The results of all parts for one model. ``entry`` and ``clean`` are those with the most images."""

    entry: Examined
    clean: Bound | None = None
    bounds: list[Bound] = field(default_factory=list)
    audits: list[AuditOf] = field(default_factory=list)

    def lowest(self) -> dict[str, Bound]:
        """Find the lowest bound in each ball, the largest ball last; audits with an invalid set-up give none."""
        found: dict[str, Bound] = {}
        for one in sorted(self.bounds, key=lambda bound: (bound.norm, bound.epsilon, bound.value, -bound.n)):
            found.setdefault(one.ball, one)
        return found


def write_card(directory: Path) -> Path:
    """Write the card of every model in ``directory``, or in its sub-directories, to ``card.md`` there.

    Raises :class:`GradscopeError` if there are no results of models, or a file is damaged.
    """
    path = directory / CARD
    text = card(directory)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def card(directory: Path) -> str:
    """Make the card of every model in ``directory``, or in its sub-directories, as Markdown."""
    folders = [directory, *(path.parent for path in sorted(directory.glob(f"[!.]*/{MANIFEST}")))]
    parts = [_read(folder) for folder in folders if (folder / MANIFEST).exists()]
    models = _models([part for part in parts if part.manifest.checkpoints])
    if not models:
        raise GradscopeError(
            f"directory must hold results of an audit, an attack or an analysis, or have sub-directories that do, "
            f"got {directory}"
        )
    lines = [*_front(models), "# Robustness card", *_about(), *(line for model in models for line in _section(model))]
    parts = [part for part in parts if part.audits or part.tables]
    return "\n".join([*lines, *_attacks(parts), *_limits(parts), *_reproduction(models, parts)]) + "\n"


def _read(folder: Path) -> Part:
    manifest, raw = read_manifest(folder / MANIFEST)
    document = folder / AUDIT_JSON
    audits = Audits.parse(read_json(document)).audits if document.exists() else ()
    kept: dict[str, Table] = {"attack": ATTACKS, "analysis": SUMMARY}
    table = kept.get(manifest.kind)
    found = find_table(folder / table.file) if table else None
    return Part(manifest, raw, audits, {table.file: read_table(found, table)} if table and found else {})


def _models(parts: Sequence[Part]) -> list[CardModel]:
    """List every model with numbers once, in order of appearance; one name with two files is two models."""
    found: dict[tuple[str, str], CardModel] = {}
    for part in parts:
        for entry in part.manifest.checkpoints:
            key = (entry.label, entry.fingerprint or entry.sha256 or entry.source or "")
            model = found.setdefault(key, CardModel(entry))
            if entry.data is not None and (entry.data.images or 0) > _images(model.entry):
                model.entry = entry
            for audit in part.audits:
                if audit.checkpoint == entry.label:
                    model.audits.append(audit)
            for bound in _bounds(part, entry.label):
                if bound.value != bound.value:  # measured on no image
                    continue
                if bound.under == "":
                    model.clean = max(model.clean or bound, bound, key=lambda one: one.n)
                else:
                    model.bounds.append(bound)
    return [model for model in found.values() if model.clean is not None]


def _images(entry: Examined) -> int:
    return 0 if entry.data is None else entry.data.images or 0


def _bounds(part: Part, label: str) -> Iterator[Bound]:
    """Yield the accuracies of a model; ``under`` is ``""`` for the clean one."""
    for audit in part.audits:
        if audit.checkpoint == label:
            ball, n = (audit.threat.norm, audit.threat.epsilon), audit.robust_accuracy.n
            yield Bound(
                *ball, "", audit.clean_accuracy.value, audit.clean_accuracy.ci_low, audit.clean_accuracy.ci_high, n
            )
            if audit.verdict != "set-up invalid":
                bound = audit.robust_accuracy
                under = f"audit, budget {audit.budget}"
                yield Bound(*ball, under, bound.upper_bound, bound.ci_low, bound.ci_high, bound.n)
    for name, rows in part.tables.items():
        own = rows[rows["checkpoint"] == label]
        yield from _of_attacks(own) if name == ATTACKS.file else _of_analysis(own, part.manifest)


def _of_attacks(rows: pd.DataFrame) -> Iterator[Bound]:
    """Yield the clean accuracy and the robust accuracy under all attacks together."""
    for (norm, epsilon), own in rows.groupby(["norm", "epsilon"], sort=False):
        names = [str(name) for name in own["attack"].unique() if name != "none"]
        for row in own[(own["attack"] == "none") & (own["metric"] == "accuracy")].to_dict("records"):
            yield _bound(norm, epsilon, "", row)
        for row in own[own["metric"] == "robust-accuracy"].tail(1).to_dict("records"):
            yield _bound(norm, epsilon, ", ".join(names), row)


def _of_analysis(rows: pd.DataFrame, manifest: Manifest) -> Iterator[Bound]:
    """Yield the clean accuracy and the accuracy under each attack that stays in the ball and in [0, 1]."""
    for row in rows[rows["metric"] == "accuracy"].to_dict("records"):
        name = str(row["attack"])
        if row["subset"] == "clean/all":
            yield _bound("", 0.0, "", row)
        elif row["subset"] == "worst/all" and manifest.ball(name) and manifest.attacks[name].get("box"):
            settings = manifest.attacks[name]
            yield _bound(settings.get("norm", ""), settings["epsilon"], name, row)


def _bound(norm: Any, epsilon: Any, under: str, row: Mapping[Any, Any]) -> Bound:
    return Bound(str(norm), float(epsilon), under, row["value"], row["ci_low"], row["ci_high"], int(row["n"]))


# --- the metadata ---


def _front(models: Sequence[CardModel]) -> Iterator[str]:
    """Write the block of YAML that the Hub reads: one entry per model, with its metrics on its data set."""
    yield from ("---", "tags:", "- adversarial-robustness", "model-index:")
    for model in models:
        data = model.entry.data
        name = data.name if data is not None and data.name else "unknown"
        yield f"- name: {_yaml(model.entry.label)}"
        yield from ("  results:", "  - task:", "      type: image-classification", "    dataset:")
        yield from (f"      type: {_yaml(name)}", f"      name: {_yaml(name)}")
        yield f"      split: {_yaml(data.split if data is not None and data.split else 'test')}"
        yield "    metrics:"
        if model.clean is not None:
            yield from ("    - type: accuracy", f"      value: {model.clean.value:.6g}", '      name: "Clean accuracy"')
        for ball, bound in model.lowest().items():
            yield from ("    - type: robust_accuracy", f"      value: {bound.value:.6g}")
            yield f"      name: {_yaml(f'Robust accuracy, upper bound ({ball})')}"
            yield from ("      args:", f"        norm: {_yaml(bound.norm)}", f"        epsilon: {bound.epsilon:.6g}")
    yield from ("---", "")


def _yaml(text: str) -> str:
    """Quote a text for YAML, which accepts the strings of JSON."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))


# --- the section of a model ---


def _about() -> Iterator[str]:
    yield ""
    yield (
        "Robust accuracy is the share of all test images that the model classifies correctly without an attack and "
        "under every attack that was run. It is an upper bound. Square brackets show 95 % Wilson intervals."
    )


def _section(model: CardModel) -> Iterator[str]:
    yield from ("", f"## {_text(model.entry.label)}", "")
    for audit in model.audits:
        yield from _verdict(audit)
    yield from ("| | |", "| --- | --- |")
    for head, said in _facts(model):
        yield f"| {head} | {said} |"
    for audit in model.audits:
        yield from _checks(audit)


def _verdict(audit: AuditOf) -> Iterator[str]:
    words = f"no masking found{NONE_FOUND.removeprefix('none found')}" if audit.verdict == NONE_FOUND else audit.verdict
    cause = f", cause: {_text(audit.causes[0])}" if audit.causes else ""
    yield f"**Audit ({_text(audit.ball)}, budget {_text(audit.budget)}): {words}{cause}.** {_sentence(audit.reason)}"
    if audit.claim is not None:
        yield from ("", f"**{_sentence(audit.of_claim)}**")
    yield ""


def _facts(model: CardModel) -> Iterator[tuple[str, str]]:
    entry = model.entry
    yield "Model", ", ".join(_identity(model))
    if entry.sha256:
        yield "SHA-256 of the weights", _code(entry.sha256)
    if entry.data is not None:
        drawn = (
            f"{entry.data.images:,} of {entry.data.of:,} images" if entry.data.images and entry.data.of else "images"
        )
        yield "Data", f"{_text(entry.data.name)}, {drawn} of the {_text(entry.data.split)} split"
    if model.clean is not None:
        yield "Clean accuracy", _share(model.clean)
    for ball, bound in model.lowest().items():
        yield f"Robust accuracy, {_text(ball)}", f"at most {_share(bound)} under {_text(bound.under)}"
    for audit in model.audits:
        if audit.median_distance is not None:
            yield f"Median distance, {_text(audit.threat.norm)}", f"at most {audit.median_distance:.4g} pixel units"


def _identity(model: CardModel) -> Iterator[str]:
    entry, config = model.entry, model.entry.config or {}
    if config:
        seed = "" if config.get("seed") is None else f", seed {config['seed']}"
        yield f"{_text(str(config.get('architecture', '')))}, trained as {_text(str(config.get('mode', '')))}{seed}"
        if entry.epochs is not None:
            yield f"{entry.epochs} epochs"
        given = config.get("phases")
        phases = [phase for phase in given if isinstance(phase, Mapping)] if isinstance(given, list) else []
        for adversary in [phase["adversary"] for phase in phases if isinstance(phase.get("adversary"), Mapping)][-1:]:
            ball = f"{adversary.get('norm', '')} {adversary.get('epsilon', '')}"
            yield f"against {_text(str(adversary.get('method', 'an adversary')).upper())} in {_text(ball)}"
    elif entry.source:
        yield f"{_text(entry.source)}, trained elsewhere"
    else:
        yield _text(entry.label)


def _checks(audit: AuditOf) -> Iterator[str]:
    fired = sorted((check for check in audit.checks if check.state == "fired"), key=lambda check: not check.accuses)
    abstained = [check for check in audit.checks if check.state == "abstained"]
    if fired:
        yield from ("", f"### Checks that fired ({_text(audit.ball)})", "")
    for check in fired:
        accuses = "accuses" if check.accuses else "does not accuse"
        name, cause, step = _text(check.name), _sentence(check.cause), _sentence(check.next_step)
        yield f"- {check.id} {name} ({accuses}): {cause} Next: {step}"
    if abstained:
        said = "; ".join(f"{check.id} {_text(check.name)} ({_text(check.cause)})" for check in abstained)
        yield from ("", f"Checks that could not be made: {said}.")


def _attacks(parts: Sequence[Part]) -> Iterator[str]:
    """Write every attack with its settings and, for an audit, the accuracy under it alone."""
    yield from ("", "## How the models were attacked")
    for part in parts:
        named = " ".join(dict.fromkeys(audit.ball for audit in part.audits))
        title = f"audit ({named}), share of images right under each attack alone" if part.audits else part.manifest.kind
        labels = [audit.checkpoint for audit in part.audits]
        yield from ("", f"### {title[:1].upper()}{_text(title[1:])}", "")
        yield f"| attack | description |{''.join(f' {_text(label)} |' for label in labels)}"
        yield f"| --- | --- |{' --- |' * len(labels)}"
        for name, settings in part.manifest.attacks.items():
            if not part.audits or any(name not in audit.left_out for audit in part.audits):
                left = "".join(f" {_left(audit, name)} |" for audit in part.audits)
                yield f"| {_text(name)} | {_text(_described(settings))} |{left}"
        if budget := describe_attack(part.raw_manifest.get("budget")):
            yield from ("", f"Settings that each attack uses if it needs them: {_text(budget)}.")
        if left_out := {name: why for audit in part.audits for name, why in audit.left_out.items()}:
            said = [f"{', '.join(_of(left_out, why))} ({why})" for why in dict.fromkeys(left_out.values())]
            yield from ("", f"Not run: {_text('; '.join(said))}.")


def _left(audit: AuditOf, name: str) -> str:
    """Write the accuracy under an attack alone; query attacks run only on the images that the others do not fool."""
    return f"{100 * audit.under[name]:.1f} %" if name in audit.under else "on the rest"


def _of(reasons: Mapping[str, str], reason: str) -> list[str]:
    return [name for name, its in reasons.items() if its == reason]


def _described(settings: object) -> str:
    meaning = str(settings.get("meaning", "")) if isinstance(settings, Mapping) else ""
    return ", ".join(piece for piece in (meaning, describe_attack(settings)) if piece)


# --- the sections on all models ---


def _limits(parts: Sequence[Part]) -> Iterator[str]:
    yield from ("", "## What these numbers do not say", "")
    yield f"- A robust accuracy is an upper bound for these images in this ball. {_sentence(NO_PROOF)}"
    yield "- The intervals show how much the numbers depend on the choice of images, not what other attacks would find."
    yield "- Other norms, larger radii, corruptions, rotations and other data are not covered."
    if not any(part.audits for part in parts):
        yield "- No audit is among these results: they do not say whether gradients are masked."
    if any(part.manifest.complete is False for part in parts):
        yield "- Some of these results are incomplete: a run was interrupted."
    said = [sentence for part in parts for sentence in (*part.manifest.adapted, *cautions(part.manifest))]
    yield from (f"- {_text(sentence.removesuffix('.'))}." for sentence in dict.fromkeys(said))


def _reproduction(models: Sequence[CardModel], parts: Sequence[Part]) -> Iterator[str]:
    yield from ("", "## How to reproduce these numbers", "")
    made = [part.manifest.provenance for part in parts if part.manifest.provenance is not None]
    commands = dict.fromkeys(one.shell_command for one in made if one.shell_command)
    trained = dict.fromkeys(model.entry.trained.shell_command for model in models if model.entry.trained)
    lines = [*(line for line in trained if line and line not in commands), *commands]
    if lines:
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", "".join(lines))), default=0))
        yield from (f"{fence}sh", *(" ".join(line.split()) for line in lines), fence, "")
    in_python = [part for part in parts if part.manifest.provenance and not part.manifest.provenance.shell_command]
    for part in in_python:
        options = part.raw_manifest.get("options")
        given = {key: one for key, one in options.items() if _is_plain(one)} if isinstance(options, Mapping) else {}
        said = ", ".join(f"{_text(key)} {_text(str(value))}" for key, value in given.items())
        yield f"- The {part.manifest.kind} was measured from Python with these options: {said}"
    seeds = dict.fromkeys(str(part.manifest.seed) for part in parts if part.manifest.seed is not None)
    data = {model.entry.data.name: model.entry.data.fingerprint for model in models if model.entry.data is not None}
    for head, values in (
        ("Seed of the measurements", seeds),
        ("Fingerprint of the images", [f"{_text(name)} {_code(mark)}" for name, mark in data.items() if mark]),
        ("Versions", dict.fromkeys(_versions(one) for one in made)),
        ("Machine", dict.fromkeys(_machine(one) for one in made)),
        ("Time (UTC)", dict.fromkeys((one.time or "").replace("T", " ").removesuffix("+00:00") for one in made)),
    ):
        if said := "; ".join(value for value in values if value):
            yield f"- {head}: {said}"


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _versions(made: Provenance) -> str:
    named = {"gradscope": made.gradscope, "commit": made.commit, "Python": made.python, **made.packages}
    return ", ".join(f"{_text(name)} {_text(version)}" for name, version in named.items() if version)


def _machine(made: Provenance) -> str:
    return ", ".join(_text(piece) for piece in (made.device, made.processor, made.platform) if piece)


def _share(bound: Bound) -> str:
    return f"{100 * bound.value:.1f} % [{100 * bound.ci_low:.1f}, {100 * bound.ci_high:.1f}] of {bound.n:,} images"


def _sentence(text: str) -> str:
    return f"{_text(text[:1].upper() + text[1:].removesuffix('.'))}."


def _code(digest: str) -> str:
    return f"`{digest}`" if digest.isalnum() else _text(digest)


def _text(text: str) -> str:
    """Escape text so that Markdown shows it unchanged, in one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
