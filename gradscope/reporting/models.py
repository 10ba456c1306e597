"""Collect the models of a report: their identity, their training, and every accuracy that any part measured."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pandas as pd

from gradscope.reporting.contents import Contents, ReportPart
from gradscope.reporting.tables import AUDIT_TONES, NOTHING, Cell, Heading, ReportTable, share, words
from gradscope.results.audits import NONE_FOUND, AuditOf
from gradscope.results.schemas import ATTACKS, CURVE, IDENTITY, JUDGE, SUMMARY, TRANSFER

#: The paper's attack and its exact counterpart.
PAPER, EXACT = "pgd-paper", "pgd"
_SHORT = 8
_WHO = [column.name for column in IDENTITY if column.name != "attack"]


class Ball(NamedTuple):
    """A threat model; pixel units."""

    norm: str
    epsilon: float

    def __str__(self) -> str:
        return f"{self.norm}, epsilon {self.epsilon:.4g}"

    def holds(self, other: "Ball") -> bool:
        """Whether every example of the ``other`` ball lies in this one."""
        return self.norm == other.norm and other.epsilon <= self.epsilon * (1 + 1e-6)


@dataclass(frozen=True)
class Rate:
    """A share of ``n`` images with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, row: Mapping[Any, Any], value: str = "value") -> "Rate":
        """Read a rate from a row of a table."""
        return cls(float(row[value]), float(row["ci_low"]), float(row["ci_high"]), int(row["n"]))

    @property
    def cell(self) -> Cell:
        """The rate as a cell of a table."""
        return share(self.value, self.low, self.high)

    @property
    def words(self) -> str:
        """The rate as words in a sentence."""
        return f"{self.cell.text} {self.cell.aside}".strip()


@dataclass(frozen=True)
class UnderAttack:
    """A model's accuracy under an attack, measured in ``part``.

    ``is_bound``: the examples stay in the ball and in [0, 1], so the accuracy is an upper bound of the robust accuracy.
    ``on_trial``: ``gradscope judge`` judged this attack.
    """

    attack: str
    ball: Ball
    part: str
    rate: Rate
    is_bound: bool = True
    on_trial: bool = False


@dataclass
class ReportedModel:
    """A checkpoint and its accuracies.

    ``curve``: accuracies under a minimal-norm attack, at each radius that fools a further image. ``factor``: the model
    is another checkpoint with logits multiplied by this factor, which changes no prediction. ``alike``: bounds of
    models that differ from this one only by the factor; they hold for this model too.
    """

    label: str
    mode: str
    dataset: str
    arch: str
    seed: str
    sha256: str = ""
    clean: Rate | None = None
    under: list[UnderAttack] = field(default_factory=list)
    curve: list[UnderAttack] = field(default_factory=list)
    factor: float = 1.0
    alike: list[UnderAttack] = field(default_factory=list)
    audits: list[AuditOf] = field(default_factory=list)

    def reached(self, attack: str, ball: Ball) -> UnderAttack | None:
        """Find the accuracy under one attack in one ball, measured on the most images."""
        known = [one for one in self.under if one.attack == attack and one.ball == ball and not one.on_trial]
        return max(known, key=lambda one: one.rate.n, default=None)

    def lowest(self, ball: Ball) -> UnderAttack | None:
        """Find the lowest upper bound of the robust accuracy in ``ball`` in any part; of equal bounds the tightest."""
        bounds = [one for one in (*self.under, *self.curve, *self.alike) if one.is_bound and ball.holds(one.ball)]
        return min(bounds, key=lambda one: (one.rate.value, one.rate.high), default=None)

    def on_trial(self) -> UnderAttack | None:
        """Find the accuracy under the attack that was judged."""
        return next((one for one in self.under if one.on_trial), None)


def models(contents: Contents) -> list[ReportedModel]:
    """List every checkpoint once, in order of appearance; one label with two files or data sets is two models."""
    found: dict[tuple[str, ...], ReportedModel] = {}
    for part in contents.parts:
        entries = {entry.label: entry for entry in part.manifest.checkpoints}
        for who in _who(part):
            entry = entries.get(who[0])
            same = next((key for key in found if key[:-1] == who), None) if entry is None else None
            key = same or (*who, (entry.fingerprint or entry.sha256 or entry.source or "") if entry else "")
            model = found.setdefault(key, ReportedModel(*who))
            if entry:
                model.sha256 = entry.sha256 or ""
                config = _configs(part).get(who[0], {})
                model.factor = float(config.get("logit_factor", 1.0))
                model.mode = str(config.get("mode", model.mode)) if model.factor != 1.0 else model.mode
            _add_accuracies(model, part)
    _share_bounds(list(found.values()))
    return list(found.values())


def _configs(part: ReportPart) -> dict[str, Mapping[str, Any]]:
    """Read each checkpoint's training settings from a part's manifest."""
    entries = part.raw_manifest.get("checkpoints", ())
    return {str(entry.get("label")): entry.get("config") or {} for entry in entries}


def _share_bounds(found: Sequence[ReportedModel]) -> None:
    """Share bounds among models that differ only in the scale of their logits: they make the same predictions."""
    families: dict[tuple[str, ...], list[ReportedModel]] = {}
    for model in found:
        families.setdefault((model.mode, model.dataset, model.arch, model.seed), []).append(model)
    for family in families.values():
        if sum(model.factor == 1.0 for model in family) == 1:
            for model in family:
                model.alike = [
                    replace(bound, attack=f"{bound.attack} on {other.label}")
                    for other in family
                    if other is not model
                    for bound in (*other.under, *other.curve)
                ]


def main_ball(found: Sequence[ReportedModel]) -> Ball | None:
    """Find the ball in which most models were attacked; of several the one with most results, then the first."""
    counts = Counter(one.ball for model in found for one in model.under)
    attacked = Counter(ball for model in found for ball in {one.ball for one in model.under})
    return max(counts, key=lambda ball: (attacked[ball], counts[ball]), default=None)


def _who(part: ReportPart) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield the identity of each checkpoint of a part once."""
    tables = [rows[_WHO] for rows in part.tables.values() if len(rows)]
    landscape = part.composed.landscape
    tables += [landscape[_WHO]] if landscape is not None else []
    if not tables:
        return
    rows = pd.concat(tables, ignore_index=True).drop_duplicates()
    for label, mode, dataset, arch, seed in rows.itertuples(index=False, name=None):
        yield str(label), str(mode), str(dataset), str(arch), "" if pd.isna(seed) else str(int(seed))


def _add_accuracies(model: ReportedModel, part: ReportPart) -> None:
    """Add a part's accuracies to the model: the clean accuracy if it has more images, and those under attacks."""
    tables = {name: rows[_is(rows, model)].to_dict("records") for name, rows in part.tables.items()}
    for row in tables.get(SUMMARY.file, ()):
        if row["metric"] == "accuracy" and row["subset"] == "clean/all":
            _take_clean(model, Rate.of(row))
        elif row["metric"] == "accuracy" and row["subset"] == "worst/all" and (ball := _ball_of_summary(row, part)):
            _add(model, str(row["attack"]), ball, part, Rate.of(row), row["attack"] != PAPER)
    _add_attacks(model, part, tables.get(ATTACKS.file, ()))
    for row in tables.get(TRANSFER.file, ()):
        if not row["source"]:
            _take_clean(model, Rate.of(row, "accuracy"))
        elif row["source"] == model.label:
            _add(model, str(row["attack"]), _ball(row), part, Rate.of(row, "accuracy"), row["attack"] != PAPER)
        else:
            name = f"examples of {row['source']}"
            _add(model, name, _ball(row), part, Rate.of(row, "accuracy"), row["attack"] != PAPER)
    for row in tables.get(CURVE.file, ()):
        if pd.notna(row["epsilon"]) and pd.notna(row["ci_low"]):
            model.curve.append(UnderAttack(str(row["attack"]), _ball(row), part.name, Rate.of(row)))
    _add_trial(model, part, tables.get(JUDGE.file, ()))
    for audit in part.audits:
        if audit.checkpoint == model.label:
            found = audit.robust_accuracy
            rate = Rate(found.upper_bound, found.ci_low, found.ci_high, found.n)
            ball = Ball(audit.threat.norm, audit.threat.epsilon)
            _add(model, "audit", ball, part, rate, audit.verdict != "set-up invalid")
            clean = audit.clean_accuracy
            _take_clean(model, Rate(clean.value, clean.ci_low, clean.ci_high, found.n))
            model.audits.append(audit)


def _add_attacks(model: ReportedModel, part: ReportPart, rows: Sequence[Mapping[Any, Any]]) -> None:
    """Add rows of the table ATTACKS: each attack alone on all images, and all attacks together in each ball.

    An evaluation cuts every attack's points to the ball and the box, those of the paper's attack too, so all are bounds
    unless an audit of the part found the set-up invalid.
    """
    is_bound = all(one.checkpoint != model.label or one.verdict != "set-up invalid" for one in part.audits)
    together: dict[Ball, Mapping[Any, Any]] = {}
    attacked: dict[Ball, list[str]] = {}
    for row in rows:
        if row["attack"] == "none":
            if row["metric"] == "accuracy":
                _take_clean(model, Rate.of(row))
        elif row["metric"] == "accuracy" and row["subset"] == "all":
            _add(model, str(row["attack"]), _ball(row), part, Rate.of(row), is_bound)
        elif row["metric"] == "robust-accuracy":
            together[_ball(row)] = row
            attacked.setdefault(_ball(row), []).append(str(row["attack"]))
    for ball, row in together.items() if not part.audits else ():
        names = attacked[ball]
        name = names[0] if len(names) == 1 else f"{len(names)} attacks together"
        _add(model, name, ball, part, Rate.of(row))


def _add_trial(model: ReportedModel, part: ReportPart, rows: Sequence[Mapping[Any, Any]]) -> None:
    """Add rows of the table JUDGE: the attack on trial, and our attacks, which bound the robust accuracy."""
    for row in rows:
        if pd.isna(row["left"]):
            continue
        rate = Rate.of(row, "left")
        if row["role"] == "clean":
            _take_clean(model, rate)
        elif row["role"] == "attack":
            is_bound = row["verdict"] != "invalid examples" and row["attack"] != PAPER
            found = UnderAttack(str(row["attack"]), _ball(row), part.name, rate, is_bound, on_trial=True)
            if found not in model.under:
                model.under.append(found)
        elif row["role"] == "ours":
            _add(model, str(row["name"]), _ball(row), part, rate)


def _is(rows: pd.DataFrame, model: ReportedModel) -> pd.Series:
    return (rows["checkpoint"] == model.label) & (rows["dataset"] == model.dataset) & (rows["arch"] == model.arch)


def _ball(row: Mapping[Any, Any]) -> Ball:
    return Ball(str(row["norm"]), float(row["epsilon"]))


def _ball_of_summary(row: Mapping[Any, Any], part: ReportPart) -> Ball | None:
    """Find the ball of a row of SUMMARY; for older tables in the manifest. None if neither has it."""
    if isinstance(row["norm"], str) and pd.notna(row["epsilon"]):
        return _ball(row)
    settings = part.manifest.attacks.get(str(row["attack"]))
    if not isinstance(settings, Mapping) or not isinstance(settings.get("epsilon"), int | float):
        return None
    return Ball(str(settings.get("norm", "")), float(settings["epsilon"]))


def _add(model: ReportedModel, attack: str, ball: Ball, part: ReportPart, rate: Rate, is_bound: bool = True) -> None:
    found = UnderAttack(attack, ball, part.name, rate, is_bound)
    if found not in model.under:
        model.under.append(found)


def _take_clean(model: ReportedModel, rate: Rate) -> None:
    """Take ``rate`` as the clean accuracy if it has more images than the present one."""
    if model.clean is None or rate.n > model.clean.n:
        model.clean = rate


def models_table(found: Sequence[ReportedModel]) -> ReportTable:
    """Make the table of models: identity, clean accuracy, paper's attack, exact attack, and one bound each."""
    ball = main_ball(found)
    columns = [
        (Heading("Model"), [words(model.label) for model in found]),
        (Heading("Mode"), _unless_same([model.mode for model in found], [model.label for model in found])),
        (Heading("SHA-256"), _if_ambiguous([model.sha256 for model in found], [model.label for model in found])),
        (Heading("Data"), _several([model.dataset for model in found])),
        (Heading("Architecture"), _several([model.arch for model in found])),
        (Heading("Clean", "number"), [model.clean.cell if model.clean else Cell(NOTHING) for model in found]),
    ]
    if ball:
        columns += [
            (Heading("On trial", "number", "the attack judged"), [_cell(model.on_trial()) for model in found]),
            (Heading("Paper's attack", "number"), [_cell(model.reached(PAPER, ball)) for model in found]),
            (Heading("Exact PGD", "number"), [_cell(model.reached(EXACT, ball)) for model in found]),
            (Heading("At most robust", "number", "lowest of all parts"), [_bound(model, ball) for model in found]),
            (Heading("Audit", "long"), [_audited(model) for model in found]),
        ]
    shown = [(heading, cells) for heading, cells in columns if any(cell.text != NOTHING for cell in cells)]
    rows = tuple(zip(*(cells for _, cells in shown), strict=True)) if found else ()
    return ReportTable("models", _caption(found, ball), tuple(heading for heading, _ in shown), rows)


def _several(values: list[str]) -> list[Cell]:
    """Make a column, empty (and so left out) if all models share one value."""
    return [words(value) for value in values] if len(set(values)) > 1 else [Cell(NOTHING)] * len(values)


def _unless_same(values: list[str], labels: list[str]) -> list[Cell]:
    """Make a column, empty (and so left out) if every label begins with its value."""
    alike = all(label.startswith(value) for value, label in zip(values, labels, strict=True))
    return [Cell(NOTHING) if alike else words(value) for value in values]


def _if_ambiguous(digests: list[str], labels: list[str]) -> list[Cell]:
    """Make a column of digests' beginnings if one label names two files; else empty, and so left out."""
    is_unique = len(set(labels)) == len(labels)
    return [Cell(NOTHING) if is_unique else words(digest[:_SHORT]) for digest in digests]


def _cell(found: UnderAttack | None) -> Cell:
    return found.rate.cell if found else Cell(NOTHING)


def _bound(model: ReportedModel, ball: Ball) -> Cell:
    found = model.lowest(ball)
    if found is None:
        return Cell(NOTHING)
    return share(found.rate.value, found.rate.low, found.rate.high, f"n = {found.rate.n:,}, {found.attack}")


def _audited(model: ReportedModel) -> Cell:
    """Write the worst verdict of the model's audits, with its causes."""
    if not model.audits:
        return Cell(NOTHING)
    order = list(AUDIT_TONES)
    audit = min(model.audits, key=lambda one: order.index(one.verdict))
    claims = [f"claim of {100 * audit.claim.value:.4g} % {audit.claim.verdict}"] if audit.claim else []
    verdict = "no masking found" if audit.verdict == NONE_FOUND else audit.verdict
    notes = [*audit.causes, *claims, f"budget {audit.budget}"]
    return Cell(verdict, "; ".join(notes), tone=AUDIT_TONES[audit.verdict])


def _caption(found: Sequence[ReportedModel], ball: Ball | None) -> str:
    sizes = sorted({rate.n for model in found for rate in (model.clean, *(one.rate for one in model.under)) if rate})
    images = f" over {' to '.join(f'{n:,}' for n in dict.fromkeys((sizes[0], sizes[-1])))} test images" if sizes else ""
    parts = [f"Accuracy of the models: the share of test images that are right, with its 95 % interval{images}"]
    if ball:
        parts += [
            f"attacks in {ball}",
            "at most robust: the lowest accuracy that any attack left, an upper bound of the robust accuracy",
        ]
    return "; ".join(parts)
