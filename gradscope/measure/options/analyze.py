"""The options of ``gradscope analyze``."""

from typing import Any, Self

from pydantic import model_validator

from gradscope.config import PGD, PGD_ATTACKS, attack_settings
from gradscope.errors import GradscopeError, known_names
from gradscope.measure.options.common import (
    GradientAttack,
    Sampled,
)
from gradscope.options import ATTACK, Names, default_of, option
from gradscope.results.metrics import METRICS, USUAL_METRICS


class AnalyzeOptions(GradientAttack, Sampled):
    """``gradscope analyze``, :func:`gradscope.trace`."""

    command, kind, suffix = "analyze", "analysis", ""
    summary = "Measure gradients, loss, entropy and accuracy along PGD, for one checkpoint or many side by side."
    measurement = "gradscope.measure.analyze:TrajectoryMeasurement"

    metrics: Names = option(
        ("all",),
        "metrics, separated by commas. all leaves out the metrics that need passes of their own; add those by name, as "
        "in all,distance. `gradscope list metrics` shows the names",
        metavar="NAME,...",
        names="gradscope.results.metrics:METRICS",
    )
    attack: Names = option(
        ("pgd",),
        f"attacks, separated by commas, from {', '.join(PGD_ATTACKS)}; pgd is exact, pgd-paper is the paper's attack",
        ATTACK,
        metavar="NAME,...",
        names="gradscope.config:PGD_ATTACKS",
    )
    restarts: int | None = option(
        None,
        "number of random starts; curves follow the first, 'worst' counts them all",
        ATTACK,
        usual=default_of(PGD, "restarts"),
    )

    @property
    def attacks(self) -> dict[str, PGD]:
        """The attacks by name, with their resolved settings."""
        return {name: attack_settings(name, self.changes()) for name in known_names(self.attack, PGD_ATTACKS, "attack")}

    @property
    def measured(self) -> frozenset[str]:
        """The requested metrics."""
        named = [name for name in self.metrics if name != "all"]
        metrics = frozenset(known_names(named, METRICS, "metrics") if named or not self.metrics else ())
        return metrics | set(USUAL_METRICS) if "all" in self.metrics else metrics

    @model_validator(mode="after")
    def _resolves(self) -> Self:
        self.resolved()
        if "all" not in self.metrics and "cosine" in self.metrics:
            most = max(attack.steps for attack in self.attacks.values())
            if most < 2:
                raise GradscopeError(f"steps must be at least 2 for the cosine of consecutive gradients, got {most}")
        between = [name for name in self.metrics if name.startswith("restart-")]
        if between and all(attack.restarts < 2 for attack in self.attacks.values()):
            raise GradscopeError(f"restarts must be at least 2 for {between[0]}, got 1")
        return self

    def resolved(self) -> dict[str, Any]:
        """Resolve the attacks and the metrics."""
        attacks = {name: settings.model_dump() for name, settings in self.attacks.items()}
        return {"attacks": attacks, "metrics": sorted(self.measured)}
