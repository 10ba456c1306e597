"""The measuring commands as a recipe writes them: options under the names of the command line, and what they run."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field

from gradscope.attacks.battery import BATTERY
from gradscope.audit.budgets import BUDGETS
from gradscope.config import ATTACKS, Balls, Budget, Config, Norm, attack_settings, short_attack_settings
from gradscope.errors import GradscopeError, lookup
from gradscope.models.subject import Foreign
from gradscope.report.printed import analysis_lines, attack_lines, audit_lines, landscape_lines, transfer_lines
from gradscope.results.rows import METRICS
from gradscope.study.analysis import Analysis
from gradscope.study.attacks import Battery, check_battery, run_attacks
from gradscope.study.audits import AuditRequest, check_audit, run_audits
from gradscope.study.input_landscapes import InputLandscape, check_input_landscape, run_input_landscape
from gradscope.study.inputs import Request
from gradscope.study.stages import run_analysis
from gradscope.study.transfer import TransferMatrix, check_transfer, run_transfer
from gradscope.study.weight_landscapes import WeightLandscape, check_weight_landscape, run_weight_landscape


def _split(value: object) -> object:
    """``"a,b"`` as on the command line, or a list."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


#: Names as a list, or between commas.
Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Number = Annotated[str | float, Field(union_mode="left_to_right")]

#: Fields of a request that decide where and how it runs, not what comes out.
_CIRCUMSTANCES = (
    "device",
    "devices",
    "data",
    "download",
    "overwrite",
    "resume",
    "figures",
    "surrogates",
    "towards",
    "epochs",
)


@dataclass(frozen=True)
class Circumstances:
    """Where a measurement runs: the images' source, the device, whether to go on, other models' files by role.

    ``devices``: processes that share it, one a device. ``figures``: whether they are drawn.
    """

    data: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    resume: bool = False
    others: Mapping[str, Sequence[str]] = field(default_factory=dict)
    devices: int = 1
    figures: bool = True

    @property
    def shared(self) -> dict[str, Any]:
        """What every request takes; a stage of a study replaces what it finds where it is not to go on."""
        return {
            "data": self.data,
            "device": self.device,
            "devices": self.devices,
            "overwrite": True,
            "figures": self.figures,
        }


class Options(Config):
    """What every measuring command takes, and what it is asked for with it."""

    #: Options that name other models of the study, and those of them that name one.
    roles: ClassVar[tuple[str, ...]] = ()
    single: ClassVar[tuple[str, ...]] = ()

    seed: int = Field(default=0, ge=0)
    batch_size: int | None = Field(default=None, ge=1)

    @property
    def others(self) -> dict[str, tuple[str, ...]]:
        """The patterns of other models by role."""
        return {role: getattr(self, role) for role in self.roles if getattr(self, role)}

    @abstractmethod
    def request(self, circumstances: Circumstances) -> Request:
        """What the command is asked for; a bad value raises :class:`GradscopeError`."""

    @abstractmethod
    def run(self, texts: Sequence[str], circumstances: Circumstances, out: Path) -> str:
        """Measure the checkpoints ``texts`` into ``out``; the lines that the command prints."""

    @property
    def placeholder(self) -> Circumstances:
        """Circumstances before there are models."""
        return Circumstances(others=dict.fromkeys(self.others, ("other",)))

    def check(self, models: int) -> None:
        """Refuse what can be refused before there are models, of which there will be so many."""
        self.request(self.placeholder)

    def resolved(self) -> dict[str, Any]:
        """Everything that decides the results, as plain JSON values, defaults filled in."""
        request = self.request(self.placeholder)
        return {
            one.name: plain(getattr(request, one.name)) for one in fields(request) if one.name not in _CIRCUMSTANCES
        }


def plain(value: Any) -> Any:
    """``value`` as JSON holds it, equal values alike; sets are sorted, paths are text."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(one) for one in value)
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


class _Gradient(Options):
    """The options of one named attack along the gradient."""

    norm: Norm = "l2"
    epsilon: Number | None = None
    step_size: Number | None = None
    steps: int | None = None
    loss: str | None = None
    start: str | None = None
    box: bool | None = None
    reduction: str | None = None
    norm_floor: float | None = None
    precision: str | None = None

    def changes(self) -> dict[str, Any]:
        """What is given of the attack."""
        given = {key: getattr(self, key) for key in _Gradient.model_fields if key not in Options.model_fields}
        return {key: value for key, value in given.items() if value is not None}


class AnalyzeOptions(_Gradient):
    """``gradscope analyze``."""

    metrics: Names = ("all",)
    attack: Names = ("pgd",)
    restarts: int | None = None
    samples: int | None = None

    def request(self, circumstances: Circumstances) -> Analysis:
        """The attacks with their settings, and the metrics."""
        changes = self.changes() | ({} if self.restarts is None else {"restarts": self.restarts})
        return Analysis(
            **circumstances.shared,
            attacks={name: attack_settings(name, changes) for name in known(self.attack, ATTACKS, "attack")},
            metrics=frozenset(METRICS if self.metrics == ("all",) else known(self.metrics, METRICS, "metrics")),
            samples=self.samples,
            batch_size=self.batch_size,
            seed=self.seed,
            resume=circumstances.resume,
        )

    def run(self, texts: Sequence[str], circumstances: Circumstances, out: Path) -> str:
        """Measure along PGD."""
        return analysis_lines(run_analysis(texts, self.request(circumstances), Foreign(), out))


class LandscapeOptions(_Gradient):
    """``gradscope landscape``, around images or weights."""

    roles = ("towards", "epochs")
    single = ("towards", "epochs")

    space: Literal["input", "weights"] = "input"
    points: int = 51
    span: float | None = None
    images: int | None = None
    index: Annotated[tuple[int, ...], BeforeValidator(_split)] = ()
    right: bool = False
    plane: Literal["own", "shared"] = "own"
    line: bool = False
    towards: Names = ()
    epochs: Names = ()
    batch_norm: Literal["as-is", "re-estimated"] = "as-is"
    adversarial: bool = False
    attack: str = "pgd"

    def request(self, circumstances: Circumstances) -> InputLandscape | WeightLandscape:
        """The planes; options of the other space are refused, for they would silently do nothing."""
        lookup(ATTACKS, self.attack, "attack")
        shared = {
            **circumstances.shared,
            "points": self.points,
            "images": self.images,
            "seed": self.seed,
            "resume": circumstances.resume,
        }
        if self.batch_size is not None:
            raise GradscopeError("batch_size: a landscape takes none; its batches fit the memory")
        if self.space == "input":
            self._refuse("weights", "line", "towards", "epochs", "batch_norm", "adversarial")
            return InputLandscape(
                **shared,
                attack=self.attack,
                settings=attack_settings(self.attack, self.changes()),
                span=3.0 if self.span is None else self.span,
                indices=self.index,
                right=self.right,
                shared=self.plane == "shared",
            )
        self._refuse("input", "index", "right", "plane")
        if not self.adversarial:
            for name in [name for name in self.changes() if name != "norm"]:
                raise GradscopeError(f"{name}: in weight space it belongs to adversarial = true")
        return WeightLandscape(
            **shared,
            attack=self.attack if self.adversarial else "none",
            settings=short_attack_settings(self.attack, self.changes()) if self.adversarial else None,
            span=self.span,
            line=self.line,
            towards=next(iter(circumstances.others.get("towards", ())), None),
            epochs=next((Path(text).with_suffix(".epochs") for text in circumstances.others.get("epochs", ())), None),
            reestimate=self.batch_norm == "re-estimated",
        )

    def check(self, models: int) -> None:
        """Refuse planes that so many models do not have."""
        request = self.request(self.placeholder)
        if isinstance(request, InputLandscape):
            check_input_landscape(request, models)
        else:
            check_weight_landscape(request, models, Foreign())

    def _refuse(self, other: str, *names: str) -> None:
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise GradscopeError(f"{name}: it belongs to space = {other!r}, got space = {self.space!r}")

    def run(self, texts: Sequence[str], circumstances: Circumstances, out: Path) -> str:
        """Evaluate the planes."""
        request = self.request(circumstances)
        if isinstance(request, InputLandscape):
            return landscape_lines(run_input_landscape(texts, request, Foreign(), out))
        return landscape_lines(run_weight_landscape(texts, request, Foreign(), out))


class AttackOptions(Options):
    """``gradscope attack``."""

    roles = ("surrogate",)

    attacks: Names = ("pgd", "apgd-ce", "apgd-t", "square")
    norm: Norm = "l2"
    epsilon: Number | None = None
    epsilons: tuple[Number, ...] = ()
    step_size: Number | None = None
    steps: int | None = None
    restarts: int | None = None
    smoothing: int | None = None
    targets: int | None = None
    queries: int | None = None
    draws: int | None = None
    surrogate: Names = ()
    cascade: bool = True
    samples: int | None = None
    save_images: bool = False

    def request(self, circumstances: Circumstances) -> Battery:
        """The battery with its radii and its budget."""
        radii = {"norm": self.norm, "epsilon": self.epsilon, "epsilons": self.epsilons}
        budget = {key: value for key in Budget.model_fields if (value := getattr(self, key)) is not None}
        return Battery(
            **circumstances.shared,
            attacks=tuple(BATTERY if self.attacks == ("all",) else known(self.attacks, BATTERY, "attacks")),
            balls=Balls.parse({key: value for key, value in radii.items() if value is not None}),
            budget=Budget.parse(budget),
            samples=self.samples,
            batch_size=self.batch_size,
            cascade=self.cascade,
            surrogates=tuple(circumstances.others.get("surrogate", ())),
            save_images=self.save_images,
            seed=self.seed,
            resume=circumstances.resume,
        )

    def check(self, models: int) -> None:
        """Refuse surrogates that no attack takes."""
        check_battery(self.request(self.placeholder))

    def run(self, texts: Sequence[str], circumstances: Circumstances, out: Path) -> str:
        """Run the battery."""
        return attack_lines(run_attacks(texts, self.request(circumstances), Foreign(), out))


class TransferOptions(_Gradient):
    """``gradscope transfer``."""

    attack: str = "pgd"
    samples: int | None = None

    def request(self, circumstances: Circumstances) -> TransferMatrix:
        """The attack that makes the examples."""
        return TransferMatrix(
            **circumstances.shared,
            attack=self.attack,
            settings=attack_settings(self.attack, self.changes()),
            samples=self.samples,
            batch_size=self.batch_size,
            seed=self.seed,
            resume=circumstances.resume,
        )

    def check(self, models: int) -> None:
        """Refuse one model alone."""
        check_transfer(models, self.request(self.placeholder))

    def run(self, texts: Sequence[str], circumstances: Circumstances, out: Path) -> str:
        """Judge every model's examples on every model."""
        return transfer_lines(run_transfer(texts, self.request(circumstances), Foreign(), out))


class AuditOptions(Options):
    """``gradscope audit``."""

    roles = ("surrogate",)

    budget: str = "standard"
    norm: Norm = "l2"
    epsilon: Number | None = None
    surrogate: Names = ()
    samples: int | None = None

    def request(self, circumstances: Circumstances) -> AuditRequest:
        """The ball and the budget."""
        lookup(BUDGETS, self.budget, "budget")
        radii = {"norm": self.norm, "epsilon": self.epsilon}
        return AuditRequest(
            **circumstances.shared,
            balls=Balls.parse({key: value for key, value in radii.items() if value is not None}),
            budget=self.budget,
            samples=self.samples,
            batch_size=self.batch_size,
            surrogates=tuple(circumstances.others.get("surrogate", ())),
            seed=self.seed,
            resume=circumstances.resume,
        )

    def check(self, models: int) -> None:
        """Refuse more than one radius."""
        check_audit(self.request(self.placeholder))

    def run(self, texts: Sequence[str], circumstances: Circumstances, out: Path) -> str:
        """Audit every model."""
        run_audits(texts, self.request(circumstances), Foreign(), out)
        return audit_lines(out)


def known(names: Sequence[str], table: Mapping[str, Any], argument: str) -> list[str]:
    """``names``, each once; all must be in ``table``, and there must be one."""
    for name in names:
        lookup(table, name, argument)
    if not names:
        raise GradscopeError(f"{argument}: at least one name is needed, known: {', '.join(table)}")
    return list(dict.fromkeys(names))


#: The measuring commands by name.
COMMANDS: dict[str, type[Options]] = {
    "analyze": AnalyzeOptions,
    "landscape": LandscapeOptions,
    "attack": AttackOptions,
    "transfer": TransferOptions,
    "audit": AuditOptions,
}
