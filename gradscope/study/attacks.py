"""The attack stage: a battery on each checkpoint, at one radius or several, kept by attack and batch."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradscope.attacks.battery import BATTERY
from gradscope.attacks.cascade import run_battery
from gradscope.attacks.outcome import Outcome
from gradscope.attacks.threat import ThreatModel
from gradscope.attacks.transfer import make_examples
from gradscope.config import PGD, Balls, Budget, Data
from gradscope.errors import GradscopeError
from gradscope.models.subject import Foreign, Reference, Subject, load_subject, read_references
from gradscope.progress import Advance, progress_bar
from gradscope.report import figures
from gradscope.results.manifest import provenance
from gradscope.results.rows import ATTACK_SAMPLES, ATTACKS
from gradscope.results.stats import METHODS
from gradscope.results.tables import write_json, write_table
from gradscope.seeding import derive
from gradscope.study.adversarial_images import Arrays, felled_images, rescore, write_images
from gradscope.study.directory import IMAGES, clear, resumable_directory
from gradscope.study.inputs import (
    DEFAULT_SAMPLES,
    Chosen,
    Request,
    choose,
    describe,
    device_name,
    read_data,
    resolve_device,
)
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


@dataclass(frozen=True)
class _Examined:
    """A checkpoint or a surrogate, and the images it is seen on."""

    reference: Reference
    chosen: Chosen


def run_attacks(texts: Sequence[str], request: Battery, foreign: Foreign, out: Path) -> Path:
    """Run the battery on every checkpoint, write CSV, manifest and figures to ``out``.

    Every checkpoint is loaded and checked before the first is attacked. Finished batches of each attack are kept until
    all is done, so that an interrupted run can be resumed, to the same files but for the seconds.
    """
    _check(request)
    device = resolve_device(request.device)
    with resumable_directory(out, "attack", resume=request.resume, overwrite=request.overwrite):
        examined, surrogates = _read(texts, request, foreign, device)
        files = _Files(out, request, foreign, device, examined, surrogates)
        stage = _Stage(request, foreign, device, surrogates, files)
        for position, one in enumerate(examined):
            stage.measure(one)
            if request.save_images:
                named = [*texts, *request.surrogates]
                rescored = rescore(out, named, position, one.chosen, foreign, device, files.batch_size // 2 + 1)
                files.note(position, {"rescored": rescored})
        files.complete()
        figures.draw(out)
        files.tiles.remove()
    return out


def _check(request: Battery) -> None:
    """What is asked for must be possible, before anything is loaded."""
    takers = [name for name, attack in BATTERY.items() if "examples" in attack.needs]
    if request.surrogates and not any(name in takers for name in request.attacks):
        named = f"one of {', '.join(takers)}"
        raise GradscopeError(f"--surrogate: {named} among --attacks takes it, got {', '.join(request.attacks)}")


def _read(
    texts: Sequence[str], request: Battery, foreign: Foreign, device: torch.device
) -> tuple[list[_Examined], list[Reference]]:
    """Every checkpoint with its images, and the surrogates, each loaded once to see that they fit them."""
    references = read_references([*texts, *request.surrogates], foreign)
    loaded: dict[Data, Any] = {}
    examined, surrogates = [], references[len(texts) :]
    for reference in references[: len(texts)]:
        test = read_data(reference, request, loaded).test
        chosen = choose(test, request.samples, DEFAULT_SAMPLES, request.seed, "--samples")
        load_subject(reference, chosen.images, foreign, device, differentiable=False)
        for surrogate in surrogates:
            load_subject(surrogate, chosen.images, foreign, device)
        examined.append(_Examined(reference, chosen))
    shapes = {tuple(one.chosen.images.images.shape[1:]) for one in examined}
    if request.save_images and len(shapes) > 1:
        raise GradscopeError(f"--save-images: images of one shape are allowed, got {', '.join(map(str, shapes))}")
    return examined, surrogates


class _Stage:
    """One run: every checkpoint under the battery, one radius after another."""

    def __init__(
        self,
        request: Battery,
        foreign: Foreign,
        device: torch.device,
        surrogates: Sequence[Reference],
        files: "_Files",
    ) -> None:
        self.request, self.foreign, self.device = request, foreign, device
        self.surrogates, self.files = surrogates, files

    def measure(self, one: _Examined) -> None:
        """Run the battery on a checkpoint at every radius and write what came out."""
        request, started = self.request, time.perf_counter()
        subject = load_subject(one.reference, one.chosen.images, self.foreign, self.device, differentiable=False)
        outcomes = []
        for epsilon in request.balls.radii:
            images = len(one.chosen.images)
            wanted = images * (len(request.attacks) + len(self.surrogates))
            with progress_bar(f"{subject.label} {request.balls.norm} {epsilon:.4g}", wanted) as advance:
                outcomes.append(self._run(subject, one.chosen, epsilon, advance))
        self.files.add(subject, one.chosen, outcomes, time.perf_counter() - started)

    def _run(self, subject: Subject, chosen: Chosen, epsilon: float, advance: Advance) -> Outcome:
        def get(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
            return self.files.tiles.get(_tile(subject.label, chosen, epsilon, name), make)

        request = self.request
        return run_battery(
            subject.model,
            chosen.images,
            request.attacks,
            ThreatModel(request.balls.norm, epsilon),
            request.budget,
            numbers=chosen.numbers,
            examples=[self._examples(reference, chosen, epsilon, advance) for reference in self.surrogates],
            cascade=request.cascade,
            keep_images=request.save_images,
            seed=request.seed,
            device=self.device,
            batch_size=self.files.batch_size,
            get=get,
            advanced=advance,
        )

    def _examples(self, reference: Reference, chosen: Chosen, epsilon: float, advance: Advance) -> Tensor:
        """PGD's last iterates on a surrogate, which all checkpoints that are seen on the same images share."""

        def make() -> dict[str, Tensor]:
            surrogate = load_subject(reference, chosen.images, self.foreign, self.device)
            settings = _surrogate_settings(self.request, epsilon)
            made = make_examples(
                surrogate.model,
                chosen.images,
                settings,
                numbers=chosen.numbers,
                seed=self.request.seed,
                device=self.device,
                batch_size=self.files.batch_size,
                advanced=lambda images, note: advance(0, f"examples of {reference.label}"),
            )
            return {"examples": made}

        kept = self.files.tiles.get(_tile(reference.label, chosen, epsilon, "examples"), make)
        advance(len(chosen.images), f"examples of {reference.label}")
        return kept["examples"]


def _tile(label: str, chosen: Chosen, epsilon: float, name: str) -> str:
    """The file of a piece: another one for another checkpoint, set of images or radius."""
    return f"{derive(0, label, chosen.images.fingerprint, epsilon):016x}-{name}"


def _surrogate_settings(request: Battery, epsilon: float) -> PGD:
    """The exact attack, inside the battery's ball and budget."""
    steps, step_size = request.budget.steps, request.budget.step_size
    length = 2.5 * epsilon / steps if step_size is None else step_size
    return PGD(norm=request.balls.norm, epsilon=epsilon, steps=steps, step_size=length)


class _Files:
    """The files of an attack, rewritten whenever a checkpoint has been attacked, and its unfinished pieces."""

    def __init__(
        self,
        out: Path,
        request: Battery,
        foreign: Foreign,
        device: torch.device,
        examined: Sequence[_Examined],
        surrogates: Sequence[Reference],
    ) -> None:
        self.out, self.request = out, request
        self.batch_size = request.batch_size or (32 if device.type == "cpu" else 512)
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
            "surrogates": [describe(reference, examined[0].chosen) for reference in surrogates],
            "intervals": METHODS,
            "foreign": {"mean": foreign.mean, "std": foreign.std},
            "complete": False,
            "checkpoints": [describe(one.reference, one.chosen) for one in examined],
            "provenance": provenance(device_name(device)),
        }
        shared = ("norm", "budget", "cascade", "batch_size", "seed")
        depends = {key: self.manifest[key] for key in shared} | {
            "epsilon": self.manifest["epsilons"],
            "attack": list(request.attacks),
            "surrogate": _sources(self.manifest["surrogates"]),
            "checkpoint": _sources(self.manifest["checkpoints"]),
            "image": [one.chosen.images.fingerprint for one in examined],
            "save_images": request.save_images,
            "normalisation": self.manifest["foreign"],
            "device": device.type,
            "torch": self.manifest["provenance"]["packages"]["torch"],
        }
        self.tiles = Tiles(out, depends, resume=request.resume)

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
        write_table(self.out / ATTACK_SAMPLES.file, ATTACK_SAMPLES, self._rows(_sample_rows))
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


def _sources(entries: Sequence[Row]) -> list[str]:
    return [entry["sha256"] or entry["source"] for entry in entries]


def _sample_rows(outcome: Outcome, identity: Row) -> Iterator[Row]:
    """The outcome's rows for each image, with the ball, and which attack was the first to fool the model."""
    felled = dict(zip(outcome.numbers.tolist(), outcome.felled_by(), strict=True))
    ball = {"norm": outcome.threat.norm, "epsilon": outcome.threat.epsilon}
    for row in outcome.sample_rows(identity):
        yield row | ball | {"first": int(felled[row["index"]] == row["attack"])}


def _bare(outcome: Outcome) -> Outcome:
    """The outcome without its images, which would fill the memory."""
    attacks = {name: replace(attack, adversarial=None) for name, attack in outcome.attacks.items()}
    return replace(outcome, attacks=attacks)
