"""The audit stage: each checkpoint attacked with what a budget allows, and what the checks add up to."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from gradscope.attacks.battery import BATTERY
from gradscope.attacks.outcome import Outcome
from gradscope.attacks.threat import ThreatModel
from gradscope.audit.budgets import BUDGETS, budget_of
from gradscope.audit.evidence import stages
from gradscope.audit.exhibits import Exhibit, exhibits
from gradscope.audit.verdict import SCHEMA, Audit, examine
from gradscope.config import Balls
from gradscope.errors import GradscopeError
from gradscope.models.subject import Foreign, Subject, load_subject
from gradscope.progress import progress_bar
from gradscope.results.rows import ATTACK_SAMPLES, ATTACKS, AUDIT, AUDIT_JSON, EXHIBITS
from gradscope.results.stats import METHODS
from gradscope.results.tables import atomic, write_json, write_table
from gradscope.sharing import Team, prefixed
from gradscope.study.directory import clear, resumable_directory
from gradscope.study.examined import (
    Examined,
    describe_surrogates,
    read_examined,
    require_one_shape,
    sources,
    surrogate_examples,
)
from gradscope.study.inputs import Request, arithmetic, describe, draw_figures, made_by
from gradscope.study.ranks import on_every_rank
from gradscope.study.tiles import Tiles

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class AuditRequest(Request):
    """What ``audit`` is told: the ball, of one radius, what may be spent, and on how many test images.

    ``surrogates`` are named like checkpoints; their examples are tried on every checkpoint but themselves.
    """

    balls: Balls
    budget: str = "standard"
    samples: int | None = None
    batch_size: int | None = None
    surrogates: tuple[str, ...] = ()
    resume: bool = False

    @property
    def threat(self) -> ThreatModel:
        """The ball around each image."""
        (epsilon,) = self.balls.radii
        return ThreatModel(self.balls.norm, epsilon)


def run_audits(texts: Sequence[str], request: AuditRequest, foreign: Foreign, out: Path) -> Path:
    """Audit every checkpoint; write CSV, ``audit.json``, manifest, pictures and figures to ``out``.

    Every checkpoint is loaded and checked before the first is attacked. The pieces of the work are kept until all is
    done, so that an interrupted run can be resumed, to the same files but for the seconds.
    """
    check_audit(request)
    on_every_rank(request, partial(_run, texts, request, foreign, out))
    return out


def _run(texts: Sequence[str], request: AuditRequest, foreign: Foreign, out: Path, team: Team) -> None:
    with resumable_directory(out, "audit", team, resume=request.resume, overwrite=request.overwrite):
        images = BUDGETS[request.budget].images
        examined = read_examined(texts, request.surrogates, request, request.samples, images, foreign, team.device)
        require_one_shape(examined, "CKPT")
        files = _Files(out, request, foreign, team, examined)
        for one in examined:
            _audit(one, request, foreign, team, files)
        if team.is_first:
            files.complete()
            draw_figures(out, request)
            files.tiles.remove()


def check_audit(request: AuditRequest) -> None:
    """What is asked for must be known, before anything is loaded."""
    budget_of(request.budget, with_examples=bool(request.surrogates))
    if len(request.balls.radii) != 1:
        raise GradscopeError(f"--epsilon: one radius is allowed in an audit, got {len(request.balls.radii)}")


def _audit(one: Examined, request: AuditRequest, foreign: Foreign, team: Team, files: "_Files") -> None:
    """Audit a checkpoint and write what came out."""
    started, threat, device = time.perf_counter(), request.threat, team.device
    subject = load_subject(one.reference, one.chosen.images, foreign, device, differentiable=False)
    each = prefixed(files.tiles.each, one.tile(subject.label, threat))
    budget = budget_of(request.budget, with_examples=bool(one.surrogates))
    images = one.chosen.images
    wanted = stages(budget, len(images)) + len(images) * len(one.surrogates)
    with progress_bar(f"auditing {subject.label}", wanted, visible=team.is_first) as advance:
        examples = surrogate_examples(
            *(one, threat, budget.attacks, request.seed, foreign, device, files.batch_size, files.tiles.each, advance)
        )
        found = examine(
            subject.model,
            images,
            one.chosen.numbers,
            threat,
            request.budget,
            surrogate_examples=examples,
            seed=request.seed,
            device=device,
            batch_size=files.batch_size,
            each=each,
            advanced=advance,
        )
        shown = exhibits(
            found, subject.model, images, surrogate_examples=examples, seed=request.seed, device=device, each=each
        )
    if request.surrogates and not one.surrogates:
        itself = dict.fromkeys(("transfer", "pgd-from"), "the surrogate given is this model itself")
        found = replace(found, left_out={**found.left_out, **itself})
    if team.is_first:
        files.add(subject, one, found, shown, time.perf_counter() - started)


class _Files:
    """The files of an audit, rewritten whenever a checkpoint has been audited, and its unfinished pieces."""

    def __init__(
        self,
        out: Path,
        request: AuditRequest,
        foreign: Foreign,
        team: Team,
        examined: Sequence[Examined],
    ) -> None:
        self.out = out
        self.batch_size = request.batch_size or (32 if team.device.type == "cpu" else 512)
        self.audits: list[tuple[Row, Audit]] = []
        self.shown: list[Row] = []
        budget = BUDGETS[request.budget]
        self.manifest: Row = {
            "kind": "audit",
            "norm": request.threat.norm,
            "epsilon": request.threat.epsilon,
            "audit_budget": request.budget,
            "budget": budget.attacks.model_dump(),
            "probed": {"images": budget.probed, "directions": budget.directions, "draws": budget.draws},
            "attacks": {name: {"meaning": BATTERY[name].meaning} for name in budget.names},
            "batch_size": self.batch_size,
            "seed": request.seed,
            "surrogates": describe_surrogates(examined),
            "intervals": METHODS,
            "foreign": {"mean": foreign.mean, "std": foreign.std},
            "complete": False,
            "checkpoints": [describe(one.reference, one.chosen) for one in examined],
            "provenance": made_by(team),
        }
        shared = ("norm", "epsilon", "audit_budget", "budget", "probed", "batch_size", "seed")
        depends = {key: self.manifest[key] for key in shared} | {
            "surrogate": sources(self.manifest["surrogates"]),
            "checkpoint": sources(self.manifest["checkpoints"]),
            "image": [one.chosen.images.fingerprint for one in examined],
            "normalisation": self.manifest["foreign"],
            **arithmetic(team),
        }
        self.tiles = Tiles(out, depends, team, resume=request.resume)

    def add(self, subject: Subject, one: Examined, found: Audit, shown: Sequence[Exhibit], seconds: float) -> None:
        """Add the next checkpoint's audit and write everything."""
        if not self.audits:
            clear(self.out)
        identity = subject.identity(one.chosen.images.name, "")
        self.audits.append((identity, found))
        self.shown += [_pictured(subject.label, exhibit, one.chosen.images.classes) for exhibit in shown]
        write_table(self.out / AUDIT.file, AUDIT, chain.from_iterable(made.rows(who) for who, made in self.audits))
        write_table(self.out / ATTACKS.file, ATTACKS, self._rows(Outcome.attack_rows))
        write_table(self.out / ATTACK_SAMPLES.file, ATTACK_SAMPLES, self._rows(Outcome.sample_rows))
        write_json(self.out / AUDIT_JSON, {"schema": SCHEMA, "audits": [_document(*made) for made in self.audits]})
        _write_exhibits(self.out / EXHIBITS, self.shown)
        self.manifest["checkpoints"][len(self.audits) - 1] |= {"seconds": seconds, "skipped": dict(found.left_out)}
        write_json(self.out / "manifest.json", self.manifest)

    def complete(self) -> None:
        """Say that all is measured. The pieces stay until it is drawn."""
        self.manifest["complete"] = True
        write_json(self.out / "manifest.json", self.manifest)

    def _rows(self, rows_of: Callable[[Outcome, Row], Iterator[Row]]) -> Iterator[Row]:
        return chain.from_iterable(rows_of(made.evidence.main, identity) for identity, made in self.audits)


def _document(identity: Row, found: Audit) -> Row:
    """The audit's part of ``audit.json``, with whose it is in front."""
    return {key: value for key, value in identity.items() if key != "attack"} | found.to_json()


def _pictured(label: str, exhibit: Exhibit, classes: Sequence[str]) -> Row:
    """An exhibit as a row of ``evidence.npz``: numbers, pictures, and the names of the classes."""
    numbers = {
        "label": exhibit.label,
        "clean_predicted": exhibit.clean_predicted,
        "adversarial_predicted": exhibit.adversarial_predicted,
    }
    return {
        "clean": exhibit.clean.numpy(),
        "adversarial": exhibit.adversarial.numpy(),
        "index": exhibit.index,
        **numbers,
        **{f"{key}_name": classes[number] for key, number in numbers.items()},
        "attack": exhibit.attack,
        "check": exhibit.check,
        "checkpoint": label,
    }


def _write_exhibits(path: Path, shown: Sequence[Row]) -> None:
    """All pictures as one .npz, an array a key; none where there is nothing to show."""
    if not shown:
        return
    arrays: dict[str, Any] = {key: np.array([row[key] for row in shown]) for key in shown[0]}
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
