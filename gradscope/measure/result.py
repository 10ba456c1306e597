"""What a measurement gives: the files that the command writes, held in memory, and what a person wants to see first."""

import html
import io
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from gradscope.errors import GradscopeError, first_of, lookup, reason_of
from gradscope.limits import require_memory
from gradscope.measure.directory import FILES, IMAGES, clear, results_directory
from gradscope.reading import open_file, parse_json, read_bytes, read_json
from gradscope.results.arrays import read_arrays
from gradscope.results.audits import AuditOf, Audits, read_example_images
from gradscope.results.files import atomic
from gradscope.results.manifest import MANIFEST, read_manifest
from gradscope.results.metrics import METRICS
from gradscope.results.schemas import (
    ATTACK_SAMPLES,
    ATTACKS,
    AUDIT,
    AUDIT_JSON,
    BANDS,
    CURVE,
    EXAMPLE_IMAGES,
    JUDGE,
    LANDSCAPE,
    PATH,
    SAMPLES,
    SCALE,
    SIMILARITY,
    STEPS,
    SUMMARY,
    TRANSFER,
    TRANSFER_SAMPLES,
    Table,
)
from gradscope.results.stats import Interval
from gradscope.results.tables import file_content, find_table, parse_table, tell_changes
from gradscope.validation import given_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gradscope.figures.draw import Sources

#: Every table by its name without the ending.
TABLES: dict[str, Table] = {
    table.file.removesuffix(".csv"): table
    for table in (
        STEPS,
        SAMPLES,
        SUMMARY,
        LANDSCAPE,
        PATH,
        BANDS,
        ATTACKS,
        CURVE,
        TRANSFER,
        SIMILARITY,
        AUDIT,
        SCALE,
        JUDGE,
    )
}


#: Findings that a ``repr`` shows.
_MOST_FINDINGS = 4


class Result:
    """The files of one measurement, in memory: tables as pandas frames, figures drawn when they are asked for.

    ``files`` are the contents by name, ``manifest`` says how they were made. Two results are equal where all files are.
    """

    #: The ``kind`` that the manifest says, and the table that :meth:`frame` gives.
    kind: ClassVar[str]
    main: ClassVar[str]

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.manifest: dict[str, Any] = parse_json(self.files[MANIFEST])

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Result) and self.files == other.files

    __hash__ = None  # type: ignore[assignment]  # equal by content

    @property
    def models(self) -> list[str]:
        """The names of the models that were measured."""
        return [entry.get("label", "") for entry in self.manifest.get("checkpoints", ())]

    @property
    def tables(self) -> list[str]:
        """The names that :meth:`frame` takes."""
        return [name for name, table in TABLES.items() if table.file in self.files]

    def frame(self, table: str | None = None) -> pd.DataFrame:
        """A table with the columns of its CSV: the main one, or one of :attr:`tables`."""
        known = {name: TABLES[name] for name in self.tables}
        wanted = lookup(known, self.main if table is None else table, "table")
        if wanted.file == SAMPLES.file:
            wanted = self._samples
        return parse_table(self.files[wanted.file], wanted)

    @property
    def _samples(self) -> Table:
        return SAMPLES

    def plot(self, name: str | None = None) -> "Figure":
        """Draw the main figure, or the one called ``name``: "steps-cosine", or "cosine" in short; see :attr:`plots`."""
        from gradscope.figures.draw import figure

        if name is not None:
            names = self.plots
            close = [known for known in names if known == name or known.endswith(f"-{name}")]
            name = close[0] if close else lookup(dict.fromkeys(names, name), name, "name")
        _let_notebooks_show_figures()
        return figure(self._sources(), name)

    @property
    def plots(self) -> list[str]:
        """The names that :meth:`plot` takes."""
        from gradscope.figures import style
        from gradscope.figures.draw import drawings

        with style.paper():
            return [drawing.name for drawing in drawings(self._sources())]

    def _sources(self) -> "Sources":
        from gradscope.figures.draw import Sources

        wanted = [name for name in self.tables if name not in ("summary", "bands")]
        tables = {TABLES[name].file: self.frame(name) for name in wanted}
        audit = parse_json(self.files[AUDIT_JSON]) if AUDIT_JSON in self.files else None
        return Sources(tables, self.manifest, audit, self._arrays(EXAMPLE_IMAGES))

    def _arrays(self, name: str) -> dict[str, Any] | None:
        if name not in self.files:
            return None
        try:
            return read_arrays(io.BytesIO(self.files[name]))
        except ValueError as error:
            raise GradscopeError(f"directory: {name} is damaged: {reason_of(error)}") from None

    def save(self, out: str | Path, *, overwrite: bool = False, figures: bool = True) -> Path:
        """Write the files that the command writes, and its figures, into the directory ``out``, and return it.

        :func:`gradscope.read` reads them back. Raises :class:`GradscopeError` where ``out`` holds results and
        ``overwrite`` is not set, or cannot be written.
        """
        from gradscope.figures.draw import draw

        directory = given_path(out, "out")
        with results_directory(directory, self.kind, resume=False, overwrite=overwrite):
            clear(directory)
            for name, content in sorted(self.files.items(), key=lambda file: file[0] == MANIFEST):
                with atomic(directory / name) as temporary:
                    temporary.write_bytes(content)
            if figures:
                draw(directory)
        return directory

    def summary(self) -> str:
        """What the command prints: the finding in lines of text."""
        import tempfile

        from gradscope.reporting import console

        with tempfile.TemporaryDirectory() as folder, _fitting():
            for name, content in self.files.items():
                Path(folder, name).write_bytes(content)
            return console.finding_lines(Path(folder))

    def _require_one(self, name: str, instead: str = ".frame()") -> None:
        """Refuse the attribute ``name`` of several models."""
        if len(self.models) != 1:
            raise GradscopeError(
                f"{name} must be asked of a result of one model, got {', '.join(self.models)}; see {instead}"
            )

    def _findings(self) -> Iterator[str]:
        """What was found of each model, in a few words."""
        yield from self.models

    def __repr__(self) -> str:
        with _fitting():
            findings = list(self._findings())
        more = f"; and {len(findings) - _MOST_FINDINGS} more" if len(findings) > _MOST_FINDINGS else ""
        return f"<{type(self).__name__} {'; '.join(findings[:_MOST_FINDINGS])}{more}>"

    def _repr_html_(self) -> str:
        lines = html.escape(self.summary())
        table = self.frame().head(10).to_html(index=False, border=0, float_format="{:.4g}".format)
        return f"<div><b>{html.escape(repr(self).strip('<>'))}</b><pre>{lines}</pre>{table}</div>"


@contextmanager
def _fitting() -> Iterator[None]:
    """Raise :class:`GradscopeError` where files lack what others of the same results name."""
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        if isinstance(error, GradscopeError):
            raise
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise GradscopeError(f"directory must hold results that are whole, got files that differ ({reason})") from error


def _let_notebooks_show_figures() -> None:
    """Have IPython, where it runs, show a figure that pyplot did not make, as it shows those that pyplot did."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        return
    from matplotlib.figure import Figure

    try:
        shell.display_formatter.formatters["image/png"].lookup_by_type(Figure)
    except KeyError:
        import_module("IPython.core.pylabtools").select_figure_formats(shell, {"png"})


class Trace(Result):
    """What the gradients do along attacks: ``steps`` (by step), ``samples`` (by image), ``summary``."""

    kind, main = "analysis", "steps"

    def mean(self, metric: str) -> pd.Series:
        """The mean of ``metric`` over the images, by checkpoint, attack and step."""
        steps = self.frame()
        measured = dict.fromkeys(steps["metric"])
        if metric in METRICS and metric not in measured:
            raise GradscopeError(f"metric must be one that was measured, {', '.join(measured)}, got {metric!r}")
        lookup(measured, metric, "metric")
        return steps[steps["metric"] == metric].set_index(["checkpoint", "attack", "step"])["mean"]

    def _findings(self) -> Iterator[str]:
        rows = self.frame("summary")
        accuracy = rows[(rows["metric"] == "accuracy") & rows["subset"].str.endswith("/all")]
        steps = self.frame()
        cosines = steps[steps["metric"] == "cosine"].groupby(["checkpoint", "attack"])["mean"].last().to_dict()
        for names, own in accuracy.groupby(["checkpoint", "attack"], sort=False):
            (model, attack), at = names, own.set_index("subset")["value"]
            last = f", cosine {cosines[names]:.3g}" if names in cosines else ""
            yield f"{model}: accuracy {at['clean/all']:.1%} clean, {at['worst/all']:.1%} under {attack}{last}"


class Landscape(Result):
    """Planes around images or weights: ``landscape`` (by point), ``summary``, ``samples``, ``path``."""

    kind, main = "landscape", "landscape"

    def _findings(self) -> Iterator[str]:
        facts, rows = self.manifest["landscape"], self.frame("summary")
        rows = rows[(rows["metric"] == "sharpness") & (rows["subset"] == "around/all")]
        where = f"{facts['space']} space, {facts['points']} points a side"
        for model, sharpness in zip(rows["checkpoint"], rows["value"], strict=True):
            yield f"{model}: {where}, sharpness {sharpness:.3g} nats"


class Attacks(Result):
    """Robust accuracy under a set of attacks: ``attacks``, ``samples``, and ``curve`` at every radius."""

    kind, main = "attack", "attacks"

    @property
    def _samples(self) -> Table:
        return ATTACK_SAMPLES

    @property
    def robust_accuracy(self) -> float:
        """The share of all images right when clean and under every attack, where there is one radius."""
        return float(self._robust("robust_accuracy")["value"])

    @property
    def interval(self) -> Interval:
        """Its 95 % Wilson interval."""
        lowest = self._robust("interval")
        return Interval(float(lowest["ci_low"]), float(lowest["ci_high"]))

    def _robust(self, name: str) -> pd.Series:
        self._require_one(name)
        rows = self._lowest
        if len(rows) != 1:
            radii = ", ".join(f"{radius:g}" for radius in self.manifest["epsilons"])
            raise GradscopeError(
                f"{name} must be asked of attacks at one radius that were run, got {radii}; see .frame()"
            )
        return rows.iloc[0]

    @property
    def curve(self) -> pd.DataFrame:
        """Robust accuracy at every radius: a row for each radius at which it falls; with ``curve=True``."""
        self._require_curve()
        return self.frame("curve")

    @property
    def distances(self) -> pd.DataFrame:
        """How far each image's nearest fooling point is, by image (rows) and model; with ``curve=True``."""
        self._require_curve()
        rows = self.frame("samples")
        rows = rows[(rows["metric"] == "distance") & (rows["point"] == "nearest")]
        return rows.pivot_table(index="index", columns="checkpoint", values="value")

    @property
    def median_distance(self) -> float:
        """The radius that half of the images do not survive, those wrong when clean at 0; with ``curve=True``."""
        self._require_one("median_distance", ".distances")
        return float(self.distances.median().iloc[0])

    def _require_curve(self) -> None:
        if CURVE.file not in self.files:
            raise GradscopeError("curve must be True for distances to be measured, got False")

    @property
    def _lowest(self) -> pd.DataFrame:
        """The lowest robust accuracy of each model at each radius."""
        rows = self.frame()
        rows = rows[(rows["metric"] == "robust-accuracy") & (rows["subset"] == "all") & (rows["attack"] != "none")]
        rows = rows.sort_values("value", kind="stable").drop_duplicates(["checkpoint", "norm", "epsilon"])
        return rows.sort_index()

    def _findings(self) -> Iterator[str]:
        lowest = self._lowest
        for row in lowest.to_dict("records"):
            ball = f"{row['norm']} {row['epsilon']:.3g}"
            yield f"{row['checkpoint']}: robust accuracy at most {row['value']:.1%}, {ball}"
        yield from (
            f"{model}: no attack could be run" for model in self.models if model not in set(lowest["checkpoint"])
        )

    @property
    def adversarial(self) -> dict[str, Any]:
        """The arrays of ``adversarial.npz``: every point that fooled a model; with ``save_images=True``."""
        found = self._arrays(IMAGES)
        if found is None:
            raise GradscopeError("save_images must be True for adversarial images to be kept, got False")
        return found


class TransferMatrix(Result):
    """Whose examples fool whom: ``transfer``, ``samples``; how alike the models are: ``similarity``."""

    kind, main = "transfer", "transfer"

    @property
    def _samples(self) -> Table:
        return TRANSFER_SAMPLES

    @property
    def matrix(self) -> pd.DataFrame:
        """Accuracy by source (rows; "" are the clean images) and target (columns), models in their order."""
        cells = self.frame().pivot_table(index="source", columns="checkpoint", values="accuracy")
        return cells.loc[["", *self.models], self.models]

    @property
    def similarity(self) -> pd.DataFrame:
        """Mean cosine of the input gradients of every two models at the clean images, models in their order."""
        rows = self.frame("similarity")
        rows = rows[rows["metric"] == "gradient-cosine"]
        cells = rows.pivot_table(index="other", columns="checkpoint", values="value", dropna=False)
        return cells.loc[self.models, self.models]

    def _findings(self) -> Iterator[str]:
        cells = self.matrix
        for target in self.models:
            others = cells[target].drop(["", target])
            yield f"{target}: accuracy {cells[target][target]:.1%} on its own examples, {others.min():.1%} on others'"


class AuditReport(Result):
    """Verdicts on gradient masking: ``audit`` (by check), ``attacks``, ``samples``, ``scale`` (by temperature)."""

    kind, main = "audit", "audit"

    @property
    def _samples(self) -> Table:
        return ATTACK_SAMPLES

    @property
    def audits(self) -> tuple[AuditOf, ...]:
        """The audit of each model."""
        if AUDIT_JSON not in self.files:
            raise GradscopeError(f"directory must hold {AUDIT_JSON}, got none")
        return Audits.parse(parse_json(self.files[AUDIT_JSON])).audits

    def _audit(self, name: str) -> AuditOf:
        self._require_one(name, ".audits")
        return self.audits[0]

    @property
    def verdict(self) -> str:
        """``masking found``, ``none found within this budget``, ``inconclusive`` or ``set-up invalid``."""
        return self._audit("verdict").verdict

    @property
    def reason(self) -> str:
        """Why the verdict is so, in a sentence."""
        return self._audit("reason").reason

    @property
    def causes(self) -> tuple[str, ...]:
        """The likeliest causes, first the likeliest."""
        return self._audit("causes").causes

    @property
    def upper_bound(self) -> float:
        """The lowest robust accuracy that was reached."""
        return self._audit("upper_bound").robust_accuracy.upper_bound

    @property
    def interval(self) -> Interval:
        """Its 95 % Wilson interval."""
        bound = self._audit("interval").robust_accuracy
        return Interval(bound.ci_low, bound.ci_high)

    @property
    def verdict_on_claim(self) -> str | None:
        """``refuted``, ``not refuted within this budget`` or ``inconclusive``; None where no claim was given."""
        claim = self._audit("verdict_on_claim").claim
        return None if claim is None else claim.verdict

    def _findings(self) -> Iterator[str]:
        for one in self.audits:
            if one.claim is not None:
                yield f"{one.checkpoint}: {one.of_claim}"
            bound = one.robust_accuracy.upper_bound
            yield f"{one.checkpoint}: {one.verdict_and_cause}, robust accuracy at most {bound:.1%}"


class JudgeReport(Result):
    """Verdicts on an attack: ``judge`` (the attack, ours, and its repairs)."""

    kind, main = "judge", "judge"

    def _of(self, name: str, role: str) -> pd.Series:
        self._require_one(name)
        rows = self.frame()
        return rows[rows["role"] == role].iloc[0]

    @property
    def verdict(self) -> str:
        """``the attack is blind``, ``weaker`` or ``sound``, ``invalid examples``, or ``inconclusive``."""
        return str(self._of("verdict", "attack")["verdict"])

    @property
    def finding(self) -> str:
        """Why the verdict is so, in a sentence or more."""
        return str(self._of("finding", "attack")["finding"])

    @property
    def parts(self) -> tuple[str, ...]:
        """What makes the attack blind, the largest gain first."""
        self._require_one("parts")
        return tuple(self.manifest["checkpoints"][0]["judgement"]["parts"])

    @property
    def left(self) -> float:
        """Share of all images right when clean and under the attack, its examples judged anew."""
        return float(self._of("left", "attack")["left"])

    @property
    def bound(self) -> float:
        """The lowest robust accuracy that the attack, ours and the repairs reach together."""
        return float(self._of("bound", "all")["left"])

    def _findings(self) -> Iterator[str]:
        rows = self.frame()
        for row in rows[rows["role"] == "attack"].to_dict("records"):
            yield f"{row['checkpoint']}: {row['verdict']}, {row['attack']} leaves {row['left']:.1%}"


def _below(folder: Path) -> list[str]:
    """The sub-directories with results."""
    return sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))


#: The class of each kind of result.
KINDS: dict[str, type[Result]] = {
    kind.kind: kind for kind in (Trace, Landscape, Attacks, TransferMatrix, AuditReport, JudgeReport)
}


def _content(path: Path) -> bytes:
    """The bytes of a file that is no table; :class:`GradscopeError` where what it holds is damaged."""
    if path.name == AUDIT_JSON:
        Audits.parse(read_json(path))
    if path.name == EXAMPLE_IMAGES:
        read_example_images(path)
    try:
        with open_file(path) as file:
            require_memory(os.fstat(file.fileno()).st_size)
            return file.read()
    except (OSError, ValueError) as error:
        raise GradscopeError(f"directory: {path} cannot be read: {reason_of(error)}") from None


def read(directory: str | Path) -> Result:
    """Read back what a command or :meth:`Result.save` wrote; tables may be compressed.

    Raises :class:`GradscopeError` where ``directory`` does not hold the results of one measurement.
    """
    folder = given_path(directory, "directory")
    try:
        content = read_bytes(folder / MANIFEST)
        kind = parse_json(content)["kind"]
    except OSError as error:
        below = first_of(_below(folder))
        hint = f"; the results of its sub-directories are read one by one: {below}" if below else ""
        raise GradscopeError(
            f"directory must hold {MANIFEST}, got {folder}: {error.strerror}{hint}", "directory"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise GradscopeError(f"directory must hold a {MANIFEST} of gradscope, got {folder}", "directory") from None
    if not isinstance(kind, str) or kind not in KINDS:
        below = first_of(_below(folder))
        hint = f"; the results of a study are in {below}" if below else ""
        raise GradscopeError(f"directory must hold one measurement, got a {kind!s:.50}{hint}", "directory")
    tell_changes(folder, read_manifest(folder / MANIFEST)[1])
    files = {MANIFEST: content}
    for name in FILES:
        path = folder / name
        if name.endswith(".csv"):
            found = find_table(path)
            if found is not None:
                files[name] = file_content(found)
        elif not name.endswith(".gz") and path.exists():
            files[name] = _content(path)
    return KINDS[kind](files)
