"""Audit models: attack each within a budget, and combine the checks into a verdict."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gradscope.attacks.pgd import usual_batch_size
from gradscope.attacks.threat import ThreatModel
from gradscope.auditing.checks.outcomes import FEWEST, more_images
from gradscope.auditing.example_images import ExampleImage, example_images
from gradscope.auditing.gathering import stages
from gradscope.auditing.verdict import SCHEMA, Audit, examine
from gradscope.errors import GradscopeError
from gradscope.measure.inputs import Entry, largest_image
from gradscope.measure.models import (
    describe_surrogates,
    read_entries,
    require_one_shape,
    surrogate_examples,
    unit_prefix,
)
from gradscope.measure.options import AuditOptions
from gradscope.measure.partial_results import PartialResults
from gradscope.measure.runner import Measurement, Row
from gradscope.measure.writer import Part
from gradscope.models.loading import LoadedModel
from gradscope.progress import progress_bar
from gradscope.results.cautions import at_chance
from gradscope.results.files import atomic, write_json
from gradscope.results.schemas import ATTACK_SAMPLES, ATTACKS, AUDIT, AUDIT_JSON, EXAMPLE_IMAGES, SCALE


class AuditMeasurement(Measurement[AuditOptions]):
    """``gradscope audit``."""

    def read(self) -> Sequence[Entry]:
        """Load every model on its own data set, with its surrogates; all images must have one shape."""
        entries = read_entries(self.inputs, self.options.surrogate, self.options.samples)
        require_one_shape(entries, "model")
        return entries

    def accept(self, entry: Entry, look: Row) -> None:
        """Raise :class:`GradscopeError` if a model better than chance has too few right images for paired tests."""
        right, shown = look["right"], look["images"]
        if self.options.allow_inconclusive or right >= FEWEST or at_chance(right, shown, look["classes"]):
            return
        more = more_images(right, shown, entry.chosen.available)
        raise GradscopeError(
            f"samples must include {FEWEST} images that {entry.reference.label} gets right, as paired tests need, "
            f"got {right} of {shown}: {more}; `allow_inconclusive` audits them anyway"
        )

    def described(self) -> Row:
        """Describe ball, budget and surrogates for the manifest."""
        shared = {"batch_size": self.batch_size, "surrogates": describe_surrogates(self.entries)}
        return self.options.resolved() | shared

    @property
    def batch_size(self) -> int:
        """The number of images attacked at once."""
        return self.options.batch_size or usual_batch_size(None, self.device, largest_image(self.entries))

    def parts(self, kept: PartialResults) -> Iterator[Part]:
        """Yield one part for each model."""
        documents: list[Row] = []
        shown: list[Row] = []
        for position, entry in enumerate(self.entries):
            started = time.perf_counter()
            subject = self.inputs.attacked(entry.reference, entry.chosen.images)
            audit, pictures = self._audit(subject, entry, kept)
            identity = subject.identity(entry.chosen.images.name, "")
            documents.append(_document(identity, audit) | self.options.adapted())
            shown += [_pictured(subject.label, example, entry.chosen.images.classes) for example in pictures]
            rows = {
                AUDIT: partial(audit.rows, identity),
                ATTACKS: partial(audit.evidence.main.attack_rows, identity),
                ATTACK_SAMPLES: partial(audit.evidence.main.sample_rows, identity),
            }
            if audit.evidence.scale is not None:
                rows[SCALE] = partial(audit.evidence.scale.rows, identity)
            files = {
                AUDIT_JSON: partial(write_json, value={"schema": SCHEMA, "audits": documents}),
                EXAMPLE_IMAGES: partial(_write_example_images, shown=shown),
            }
            facts = {
                "seconds": time.perf_counter() - started,
                "skipped": dict(audit.left_out),
                "gradients": audit.evidence.main.blind,
            }
            yield Part(position, rows, facts, files)

    def _audit(self, subject: LoadedModel, entry: Entry, kept: PartialResults) -> tuple[Audit, list[ExampleImage]]:
        """Audit a model; returns the audit and its example images."""
        options, images = self.options, entry.chosen.images
        threat = ThreatModel(options.norm, options.radius)
        budget = options.spending_of(with_examples=bool(entry.surrogates))
        wanted = stages(budget, len(images)) + len(images) * len(entry.surrogates)
        with progress_bar(f"auditing {subject.label}", wanted, visible=self.team.is_first) as advance:
            work = self.work(kept.each, advance)
            own = self.inputs.loss(images)
            examples = surrogate_examples(entry, self.inputs, threat, budget.attacks, work)
            work = work.prefixed(unit_prefix(entry, subject.label, threat))
            audit = examine(
                subject.model,
                images,
                entry.chosen.numbers,
                threat,
                options.budget,
                surrogate_examples=examples,
                loss=own,
                work=work,
            )
            shown = example_images(audit, subject.model, images, surrogate_examples=examples, loss=own, work=work)
        if options.surrogate and not entry.surrogates:
            itself = dict.fromkeys(("transfer", "pgd-from"), "the surrogate given is this model itself")
            audit = replace(audit, left_out={**audit.left_out, **itself})
        return replace(audit, claim=options.claim), list(shown)


def _document(identity: Row, audit: Audit) -> Row:
    """Make the audit's entry of ``audit.json``, with the claim and the identity of the model in front."""
    model = {key: value for key, value in identity.items() if key != "attack"}
    entry = audit.to_json()
    claim = {"claim": entry.pop("claim")} if "claim" in entry else {}
    return {**claim, **model, **entry}


def _pictured(label: str, example: ExampleImage, classes: Sequence[str]) -> Row:
    """Make the row of an example image in ``evidence.npz``: numbers, images, and names of classes."""
    numbers = {
        "label": example.label,
        "clean_predicted": example.clean_predicted,
        "adversarial_predicted": example.adversarial_predicted,
    }
    return {
        "clean": example.clean.numpy(),
        "adversarial": example.adversarial.numpy(),
        "index": example.index,
        **numbers,
        **{f"{key}_name": classes[number] for key, number in numbers.items()},
        "attack": example.attack,
        "check": example.check,
        "checkpoint": label,
    }


def _write_example_images(path: Path, shown: Sequence[Row]) -> None:
    """Write all example images as one .npz, one array per key; write no file if there are none."""
    if not shown:
        return
    arrays: dict[str, Any] = {key: np.array([row[key] for row in shown]) for key in shown[0]}
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
