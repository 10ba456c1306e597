"""The options of ``gradscope transfer``."""

from typing import Any, Self

from pydantic import model_validator

from gradscope.config import PGD, attack_settings
from gradscope.errors import GradscopeError
from gradscope.measure.options.common import (
    GradientAttack,
    Sampled,
    pgd_option,
)


class TransferOptions(GradientAttack, Sampled):
    """``gradscope transfer``, :func:`gradscope.transfer`."""

    command, kind, suffix = "transfer", "transfer", "-transfer"
    summary = "Measure how many adversarial examples made on each checkpoint fool every other, and itself."
    measurement = "gradscope.measure.transfer:TransferMeasurement"

    attack: str = pgd_option()

    @property
    def settings(self) -> PGD:
        """The settings of the attack that makes the examples."""
        return attack_settings(self.attack, self.changes())

    @model_validator(mode="after")
    def _moves(self) -> Self:
        if self.settings.epsilon == 0:
            raise GradscopeError("epsilon must be above 0 in an attack, got 0", argument="epsilon")
        return self

    def check(self, models: int) -> None:
        """Raise :class:`GradscopeError` for fewer than two models."""
        if models < 2:
            raise GradscopeError(f"model must be at least two models in a transfer, got {models}")

    def resolved(self) -> dict[str, Any]:
        """Resolve the attack."""
        return {"attacks": {self.attack: self.settings.model_dump()}}
