"""Read a study: from directories of results to values of each image."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from gradscope.claims.measured import CLEAN, Ball, Course, Findings, Measured, MeasuredModel, Steps, Values
from gradscope.config import PGD_ATTACKS, attack_settings
from gradscope.errors import GradscopeError
from gradscope.reading import read_json
from gradscope.results.audits import Audits
from gradscope.results.manifest import first_mistake
from gradscope.results.schemas import ATTACK_SAMPLES, AUDIT_JSON, HISTORY, SAMPLES, SIMILARITY, TRANSFER_SAMPLES, Table
from gradscope.results.tables import find_table, find_tables, read_table, tell_changes

#: For each kind of results in a manifest that claims use: the name of the kind here, and its table.
TABLES = {
    "analysis": ("analysis", SAMPLES),
    "landscape": ("landscape", SAMPLES),
    "spectrum": ("spectrum", SAMPLES),
    "attack": ("battery", ATTACK_SAMPLES),
    "audit": ("battery", ATTACK_SAMPLES),
    "transfer": ("transfer", TRANSFER_SAMPLES),
}
HISTORIES = "*.history.csv"
#: The settings that identify an attack of `analyze` and `transfer`, with their values for exact PGD.
_EXACT = {
    "loss": "cross-entropy",
    "box": True,
    "reduction": "sum",
    "norm_floor": 0.0,
    "precision": "float32",
    "smoothing": 1,
    "smoothing_radius": 0.0,
}


class _Entry(BaseModel):
    """A part of a manifest. Unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Phase(_Entry):
    epochs: int
    adversary: dict[str, Any] | None = None


class _Config(_Entry):
    phases: tuple[_Phase, ...] = ()
    mode: str = ""
    logit_factor: float = 1.0
    validation_fraction: float = 0.1


class _Trained(_Entry):
    processor: str = ""
    device: str = ""
    processes: int = 1
    jobs: int = 1
    time: datetime | None = None


def _or_empty(value: object) -> object:
    return {} if value is None else value


class _Checkpoint(_Entry):
    label: str
    source: str | None = None
    sha256: str | None = None
    fingerprint: str | None = None
    config: Annotated[_Config, BeforeValidator(_or_empty)] = _Config()
    trained: Annotated[_Trained, BeforeValidator(_or_empty)] = _Trained()


class _Manifest(_Entry):
    kind: str = ""
    attacks: dict[str, dict[str, Any]] = {}
    batch_sizes: dict[str, int] = {}
    batch_size: int = 0
    budget: dict[str, Any] = {}
    landscape: dict[str, Any] = {}
    spectrum: dict[str, Any] = {}
    checkpoints: tuple[_Checkpoint, ...] = ()


def read_study(directories: Sequence[Path]) -> Findings:
    """Read the values of each image from the ``directories`` of results, and the training histories among them.

    A directory without manifest, or without the table of its images, is left out, with a note. Raises
    :class:`GradscopeError` for a damaged file.
    """
    study = Findings()
    histories = Histories(directories)
    for directory in directories:
        if (directory / "manifest.json").exists():
            _Reader(study, directory, histories).read()
        elif not find_tables(directory, HISTORIES):
            study.notes.append(f"{directory.name} was left out, as it has no manifest.json")
    return study


class Histories:
    """The training histories in ``directories``. Raises :class:`GradscopeError` for a damaged one, even if unused."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self._found: dict[str, dict[Path, pd.DataFrame]] = {}
        for directory in directories:
            for path in find_tables(directory, HISTORIES):
                name = path.name.partition(".history.csv")[0]
                self._found.setdefault(name, {})[path] = read_table(path, HISTORY)

    def of(self, label: str, source: str | None) -> pd.DataFrame | None:
        """Find the history of the checkpoint ``source`` that the results call ``label``; None if there is none.

        Training writes it beside the checkpoint. So of several histories of that name it is the one whose folders match
        those of the checkpoint best, compared from the last folder. Raises :class:`GradscopeError` if several match
        equally and differ.
        """
        folders = Path(source).absolute().parent.parts[::-1] if source else ()
        histories = self._found.get(label, {})
        matches = {path: _in_common(path.absolute().parent.parts[::-1], folders) for path in histories}
        best = [path for path in histories if matches[path] == max(matches.values())]
        for path in best[1:]:
            if not histories[path].equals(histories[best[0]]):
                raise GradscopeError(
                    f"directory: {best[0]} and {path} are different histories of the name {label}, and either may "
                    "belong to the results; leave one of them out"
                )
        return histories[best[0]] if best else None


def _in_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Count the equal entries of two sequences before the first difference."""
    shorter = min(len(first), len(second))
    return next((at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), shorter)


class _Reader:
    """Reads one directory of results into a study."""

    def __init__(self, study: Findings, directory: Path, histories: Histories) -> None:
        self.study, self.directory, self.histories = study, directory, histories
        path = directory / "manifest.json"
        try:
            content = read_json(path)
            self.manifest = _Manifest.model_validate(content)
        except ValidationError as error:
            raise GradscopeError(
                f"directory: {path} is damaged or of another version of gradscope: {first_mistake(error)}"
            ) from None
        tell_changes(directory, content)
        self.entries = {entry.label: entry for entry in self.manifest.checkpoints}
        self.models: dict[str, MeasuredModel] = {}

    def read(self) -> None:
        """Add the directory's values to the study."""
        settings = self.manifest.landscape | self.manifest.spectrum
        if self.manifest.kind not in TABLES or settings.get("space", "input") != "input" or settings.get("versus"):
            return  # no claim compares weight space or planes of two attacks
        kind, table = TABLES[self.manifest.kind]
        path = find_table(self.directory / table.file)
        if path is None:
            self.study.notes.append(f"{self.directory.name} was left out, as it has no {table.file}")
            return
        rows = self._rows(path, table)
        makers = {"battery": self._battery, "transfer": self._transfer}
        for (checkpoint,), of_model in rows.groupby(["checkpoint"], sort=False):
            self._model(str(checkpoint), of_model)
        self.study.measured += list(makers.get(kind, self._plain)(rows, kind))
        if (compared := find_table(self.directory / SIMILARITY.file)) is not None:
            self._similarities(read_table(compared, SIMILARITY))
        if (self.directory / AUDIT_JSON).exists():
            for audit in Audits.parse(read_json(self.directory / AUDIT_JSON)).audits:
                if audit.checkpoint in self.models:
                    self.study.verdicts.setdefault(self.models[audit.checkpoint], audit.verdict_and_cause)

    def _similarities(self, rows: pd.DataFrame) -> None:
        cosines = rows[(rows["metric"] == "gradient-cosine") & rows["value"].notna()]
        for other, checkpoint, value in cosines[["other", "checkpoint", "value"]].itertuples(index=False, name=None):
            if other in self.models and checkpoint in self.models:
                self.study.similarities.setdefault((self.models[other], self.models[checkpoint]), float(value))

    def _rows(self, path: Path, table: Table) -> pd.DataFrame:
        rows = read_table(path, table)
        dependent = ("unit", "value", "label", "first", "mode", "dataset", "arch", "seed")  # fixed by the other columns
        keys = [name for name in table.names if name not in dependent]
        repeated = rows.duplicated(keys)
        if repeated.any():
            first = rows[repeated].iloc[0]
            where = f"{first['checkpoint']}, {first['metric']}, image {first['index']}"
            raise GradscopeError(f"directory: {path} must hold each value once, got two rows of {where}")
        wrong = rows[(rows["metric"] == "accuracy") & ~(rows["value"].isin([0, 1]) | rows["value"].isna())]
        if not wrong.empty:
            raise GradscopeError(
                f"directory: {path}: accuracy of an image must be 0 or 1, got {wrong.iloc[0]['value']}"
            )
        return rows

    def _model(self, label: str, rows: pd.DataFrame) -> None:
        first = rows.iloc[0]
        entry = self.entries.get(label, _Checkpoint(label=label))
        seed = None if pd.isna(first["seed"]) else int(first["seed"])
        identity = (str(first["dataset"]), str(first["arch"]), str(first["mode"]), seed)
        model = MeasuredModel(*identity, label, entry.sha256 or label, entry.fingerprint or "")
        known = [other for other in self.study.models if other.is_same(model)]
        self.models[label] = known[0] if known else model
        if not known:
            self.study.models.append(model)
        if entry.config.phases:
            course = _course(entry, self.histories.of(label, entry.source))
            kept = self.study.courses.get(self.models[label])
            if kept is None or kept.history is None:
                self.study.courses[self.models[label]] = course

    def _plain(self, rows: pd.DataFrame, kind: str) -> Iterator[Measured]:
        grid = {"landscape": self.manifest.landscape} if kind == "landscape" else {}
        for (checkpoint, attack, metric, point), cell in rows.groupby(
            ["checkpoint", "attack", "metric", "point"], sort=False
        ):
            yield self._of_settings(str(checkpoint), kind, str(attack), str(metric), str(point), cell, grid)

    def _transfer(self, rows: pd.DataFrame, kind: str) -> Iterator[Measured]:
        rows = rows.assign(source=rows["source"].fillna(""))
        for (source, checkpoint, attack, point), cell in rows.groupby(
            ["source", "checkpoint", "attack", "point"], sort=False
        ):
            if source and source not in self.models:
                continue
            made_on = self.models.get(str(source))
            yield self._of_settings(
                str(checkpoint), kind, str(attack), "accuracy", str(point), cell, {}, made_on, known=source == ""
            )

    def _of_settings(
        self,
        checkpoint: str,
        kind: str,
        attack: str,
        metric: str,
        point: str,
        cell: pd.DataFrame,
        grid: Mapping[str, Any],
        source: MeasuredModel | None = None,
        *,
        known: bool = False,
    ) -> Measured:
        """Make the values under an attack whose settings the manifest has; ``known``: they are of the clean images."""
        settings = self.manifest.attacks.get(attack, {})
        batch = self.manifest.batch_sizes.get(attack, self.manifest.batch_size)
        mean = settings.get("reduction") == "mean"
        same = {**(_EXACT | settings), **grid, **({"batch": batch} if mean else {})}
        same = {key: value for key, value in same.items() if key not in ("indices", "classes", "batch_size", "chosen")}
        floor = float(settings.get("norm_floor", 0.0)) * (batch if mean else 1)
        values, labels = _by_image(cell)
        if metric == "accuracy":
            values = values.fillna(0.0)
        return Measured(
            self.models[checkpoint],
            kind,
            attack if known else _named(attack, settings),
            Ball(str(settings.get("norm", "")), float(settings.get("epsilon", 0.0))),
            metric,
            point,
            json.dumps(same, sort_keys=True, default=str),
            values,
            labels,
            source,
            boxed=bool(settings.get("box", True)),
            floor=floor,
            steps=Steps(settings["step_size"], settings["steps"])
            if {"step_size", "steps"} <= settings.keys()
            else None,
            how=_how(kind, settings),
        )

    def _battery(self, rows: pd.DataFrame, kind: str) -> Iterator[Measured]:
        """Yield whether each image is right under each attack; images that are wrong when clean count as wrong."""
        settings = json.dumps({"battery": self.manifest.budget}, sort_keys=True, default=str)
        rows = rows[rows["metric"] == "accuracy"]
        for (checkpoint, norm, epsilon), of_model in rows.groupby(["checkpoint", "norm", "epsilon"], sort=False):
            clean, labels = _by_image(of_model[of_model["attack"] == CLEAN])
            under = {CLEAN: clean.fillna(0.0)}
            for (attack,), cell in of_model[of_model["attack"] != CLEAN].groupby(["attack"], sort=False):
                values, _ = _by_image(cell)
                under[str(attack)] = values.reindex(clean.index).where(clean == 1, 0.0)
            if not pd.concat(under, axis=1).fillna(1.0).all(axis=1).any():
                # No image survived: in a cascade the remaining attacks did not run, and would change nothing.
                nothing = under[CLEAN].where(under[CLEAN] == 0)
                under = dict.fromkeys(self.manifest.attacks, nothing) | under
            for attack, values in under.items():
                yield Measured(
                    self.models[str(checkpoint)],
                    kind,
                    attack,
                    Ball(str(norm), float(str(epsilon))),
                    "accuracy",
                    "clean" if attack == CLEAN else "final",
                    settings,
                    values,
                    labels,
                    whole=not values.isna().any(),
                    steps=_steps(attack, Ball(str(norm), float(str(epsilon))), self.manifest.budget),
                    how=_how(self.manifest.kind, self.manifest.budget),
                )


def _course(entry: _Checkpoint, history: pd.DataFrame | None) -> Course:
    phases = entry.config.phases
    trained = entry.trained
    epochs = sum(phase.epochs for phase in phases)
    if history is not None and len(history) != epochs:
        history = None  # of another run, or of an interrupted one
    return Course(
        epochs,
        sum(phase.epochs for phase in phases if phase.adversary is not None),
        f"{trained.processes} x {trained.device} ({trained.processor})",
        1 - entry.config.validation_fraction,
        history,
        entry.config.mode,
        entry.config.logit_factor,
        math.nan if trained.time is None else trained.time.timestamp(),
        trained.jobs,
    )


def _steps(attack: str, ball: Ball, budget: Mapping[str, Any]) -> Steps | None:
    """Resolve the steps of an attack of an evaluation; None if it is not PGD or its budget is unknown."""
    if attack not in PGD_ATTACKS or "steps" not in budget:
        return None
    given = {key: budget.get(key) for key in ("steps", "step_size", "relative_step_size")}
    if attack == "pgd-paper" and "relative_step_size" not in budget:
        del given["step_size"]  # older versions did not apply the budget's step size to the paper's attack
    settings = attack_settings(
        attack, {**ball._asdict(), **{key: value for key, value in given.items() if value is not None}}
    )
    return Steps(settings.step_size, settings.steps)


def _how(kind: str, settings: Mapping[str, Any]) -> str:
    return f"{kind}, {settings['steps']} steps" if "steps" in settings else kind


def _by_image(cell: pd.DataFrame) -> tuple[Values, Values]:
    """Index the values and labels of one group of rows by image."""
    index = pd.Index(cell["index"].to_numpy(), name="index")
    values = pd.Series(cell["value"].to_numpy(dtype=float), index)
    return values, pd.Series(cell["label"].to_numpy(), index)


def _named(attack: str, settings: Mapping[str, Any]) -> str:
    """Name the PGD with these ``settings`` as a battery does; other settings give ``attack`` with "(changed)"."""
    if not settings:
        return attack
    identifying = {key: settings.get(key, usual) for key, usual in _EXACT.items()}
    for name in (attack, *PGD_ATTACKS):
        known = {key: PGD_ATTACKS.get(name, {}).get(key, usual) for key, usual in _EXACT.items()}
        if name in PGD_ATTACKS and identifying == known:
            return name
    return f"{attack} (changed)"
