"""The attack stage: a battery on each checkpoint, at one radius or several, kept by attack and batch."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from gradscope.attacks.battery import BATTERY
from gradscope.attacks.cascade import run_battery
from gradscope.attacks.outcome import Outcome
from gradscope.attacks.threat import ThreatModel
from gradscope.config import Balls, Budget
from gradscope.errors import GradscopeError
from gradscope.models.subject import Foreign, Subject, load_subject
from gradscope.progress import Advance, progress_bar
from gradscope.results.rows import ATTACK_SAMPLES, ATTACKS
from gradscope.results.stats import METHODS
from gradscope.results.tables import write_json, write_table
from gradscope.sharing import Team, prefixed
from gradscope.study.adversarial_images import Arrays, felled_images, rescore, write_images
from gradscope.study.directory import IMAGES, clear, resumable_directory
from gradscope.study.examined import (
    Examined,
    describe_surrogates,
    read_examined,
    require_one_shape,
    sources,
    surrogate_examples,
    with_surrogates,
)
from gradscope.study.inputs import DEFAULT_SAMPLES, Chosen, Request, arithmetic, describe, draw_figures, made_by
from gradscope.study.ranks import on_every_rank
from gradscope.study.tiles import Tiles

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Battery(Request):
    """What ``attack`` runs: which attacks, in which order, inside which balls, on how many test images.

    ``cascade``: each attack has only the images that stand after those before it. The examples for the attacks that
    need them are made on ``surrogates``, named like checkpoints.
    """

    attacks: tuple[str, ...]
    balls: Balls
    budget: Budget
    samples: int | None = None
    batch_size: int | None = None
    cascade: bool = True
    surrogates: tuple[str, ...] = ()
    save_images: bool = False
    resume: bool = False


def run_attacks(texts: Sequence[str], request: Battery, foreign: Foreign, out: Path) -> Path:
    """Run the battery on every checkpoint, write CSV, manifest and figures to ``out``.

    Every checkpoint is loaded and checked before the first is attacked. Finished batches of each attack are kept until
    all is done, so that an interrupted run can be resumed, to the same files but for the seconds.
    """
    check_battery(request)
    on_every_rank(request, partial(_run, texts, request, foreign, out))
    return out


def _run(texts: Sequence[str], request: Battery, foreign: Foreign, out: Path, team: Team) -> None:
    with resumable_directory(out, "attack", team, resume=request.resume, overwrite=request.overwrite):
        given = (request.surrogates, request, request.samples, DEFAULT_SAMPLES, foreign, team.device)
        examined = read_examined(texts, *given)
        if request.save_images:
            require_one_shape(examined, "--save-images")
        files = _Files(out, request, foreign, team, examined)
        stage = _Stage(request, foreign, team, files)
        for position, one in enumerate(examined):
            stage.measure(one)
            if request.save_images and team.is_first:
                named = with_surrogates(texts, request.surrogates)
                rescored = rescore(out, named, position, one.chosen, foreign, team.device, files.batch_size // 2 + 1)
                files.note(position, {"rescored": rescored})
        if team.is_first:
            files.complete()
            draw_figures(out, request)
            files.tiles.remove()


def check_battery(request: Battery) -> None:
    """What is asked for must be possible, before anything is loaded."""
    takers = [name for name, attack in BATTERY.items() if "examples" in attack.needs]
    if not request.surrogates and all(name in takers for name in request.attacks):
        named = ", ".join(request.attacks)
        raise GradscopeError(f"--attacks: {named} needs another model's examples; give --surrogate")
    if request.surrogates and not any(name in takers for name in request.attacks):
        named = f"one of {', '.join(takers)}"
        raise GradscopeError(f"--surrogate: {named} among --attacks takes it, got {', '.join(request.attacks)}")


class _Stage:
    """One run: every checkpoint under the battery, one radius after another."""

    def __init__(
        self,
        request: Battery,
        foreign: Foreign,
        team: Team,
        files: "_Files",
    ) -> None:
        self.request, self.foreign, self.team, self.files = request, foreign, team, files

    def measure(self, one: Examined) -> None:
        """Run the battery on a checkpoint at every radius and write what came out."""
        request, started = self.request, time.perf_counter()
        subject = load_subject(one.reference, one.chosen.images, self.foreign, self.team.device, differentiable=False)
        outcomes = []
        for epsilon in request.balls.radii:
            images = len(one.chosen.images)
            wanted = images * (len(request.attacks) + len(one.surrogates))
            title = f"{subject.label} {request.balls.norm} {epsilon:.4g}"
            with progress_bar(title, wanted, visible=self.team.is_first) as advance:
                outcomes.append(self._run(subject, one, ThreatModel(request.balls.norm, epsilon), advance))
        if self.team.is_first:
            self.files.add(subject, one.chosen, outcomes, time.perf_counter() - started)

    def _run(self, subject: Subject, one: Examined, threat: ThreatModel, advance: Advance) -> Outcome:
        request, files, device = self.request, self.files, self.team.device
        examples = surrogate_examples(
            one, threat, request.budget, request.seed, self.foreign, device, files.batch_size, files.tiles.each, advance
        )
        return run_battery(
            subject.model,
            one.chosen.images,
            request.attacks,
            threat,
            request.budget,
            numbers=one.chosen.numbers,
            examples=examples,
            cascade=request.cascade,
            keep_images=request.save_images,
            seed=request.seed,
            device=device,
            batch_size=files.batch_size,
            each=prefixed(files.tiles.each, one.tile(subject.label, threat)),
            advanced=advance,
        )


class _Files:
    """The files of an attack, rewritten whenever a checkpoint has been attacked, and its unfinished pieces."""

    def __init__(
        self,
        out: Path,
        request: Battery,
        foreign: Foreign,
        team: Team,
        examined: Sequence[Examined],
    ) -> None:
        self.out, self.request = out, request
        self.batch_size = request.batch_size or (32 if team.device.type == "cpu" else 512)
        self.measured: list[tuple[Row, list[Outcome]]] = []
        self.images: list[Arrays] = []
        self.manifest: Row = {
            "kind": "attack",
            "norm": request.balls.norm,
            "epsilons": list(request.balls.radii),
            "budget": request.budget.model_dump(),
            "cascade": request.cascade,
            "attacks": {
                name: {"meaning": BATTERY[name].meaning, "needs": sorted(BATTERY[name].needs)}
                for name in request.attacks
            },
            "batch_size": self.batch_size,
            "seed": request.seed,
            "surrogates": describe_surrogates(examined),
            "intervals": METHODS,
            "foreign": {"mean": foreign.mean, "std": foreign.std},
            "complete": False,
            "checkpoints": [describe(one.reference, one.chosen) for one in examined],
            "provenance": made_by(team),
        }
        shared = ("norm", "budget", "cascade", "batch_size", "seed")
        depends = {key: self.manifest[key] for key in shared} | {
            "epsilon": self.manifest["epsilons"],
            "attack": list(request.attacks),
            "surrogate": sources(self.manifest["surrogates"]),
            "checkpoint": sources(self.manifest["checkpoints"]),
            "image": [one.chosen.images.fingerprint for one in examined],
            "save_images": request.save_images,
            "normalisation": self.manifest["foreign"],
            **arithmetic(team),
        }
        self.tiles = Tiles(out, depends, team, resume=request.resume)

    def add(self, subject: Subject, chosen: Chosen, outcomes: list[Outcome], seconds: float) -> None:
        """Add the next checkpoint's outcomes, one a radius, and write everything."""
        if not self.measured:
            clear(self.out)
        skipped = outcomes[0].skipped
        position = len(self.measured)
        if self.request.save_images:
            self.images += [felled_images(subject.label, outcome, chosen) for outcome in outcomes]
            write_images(self.out / IMAGES, self.images)
        self.measured.append((subject.identity(chosen.images.name, ""), [_bare(outcome) for outcome in outcomes]))
        write_table(self.out / ATTACKS.file, ATTACKS, self._rows(Outcome.attack_rows))
        write_table(self.out / ATTACK_SAMPLES.file, ATTACK_SAMPLES, self._rows(Outcome.sample_rows))
        self.note(position, {"seconds": seconds, "skipped": dict(skipped)})

    def note(self, position: int, facts: Row) -> None:
        """Say more about a checkpoint in the manifest."""
        self.manifest["checkpoints"][position] |= facts
        write_json(self.out / "manifest.json", self.manifest)

    def complete(self) -> None:
        """Say that all is measured. The pieces stay until it is drawn."""
        self.manifest["complete"] = True
        write_json(self.out / "manifest.json", self.manifest)

    def _rows(self, rows_of: Callable[[Outcome, Row], Iterator[Row]]) -> Iterator[Row]:
        return chain.from_iterable(
            rows_of(outcome, identity) for identity, outcomes in self.measured for outcome in outcomes
        )


def _bare(outcome: Outcome) -> Outcome:
    """The outcome without its images, which would fill the memory."""
    attacks = {name: replace(attack, adversarial=None) for name, attack in outcome.attacks.items()}
    return replace(outcome, attacks=attacks)
