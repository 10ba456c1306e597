"""The observer of one batch's path: it records the metrics at each iterate."""

import torch
from torch import Tensor

from gradscope import functional
from gradscope.attacks.pgd import Iterate
from gradscope.config import PGD
from gradscope.losses import cross_entropy
from gradscope.probes.streaming import Directions

#: Metrics that compare the gradients of two consecutive iterates, so they start at t = 1.
BETWEEN_ITERATES = ("cosine", "sign", "zero")


class Recorder:
    """Observes one batch's path and keeps each metric's values, ``(steps, B)``, on the device until the path ends."""

    def __init__(
        self,
        metrics: frozenset[str],
        settings: PGD,
        images: Tensor,
        labels: Tensor,
        numbers: Tensor,
        directions: Directions | None,
    ) -> None:
        self.metrics = metrics
        self.settings = settings
        self.images = images
        self.labels = labels
        self.numbers = numbers
        self._membership: Tensor | None = None
        self.directions = directions
        self.values: dict[str, list[Tensor]] = {}
        self.always_right = torch.ones_like(labels, dtype=torch.bool)
        self.first: Iterate | None = None
        self.last: Iterate | None = None
        self._unit_sum: Tensor | None = None
        self._units = torch.zeros(len(labels), device=labels.device)
        self._travelled = torch.zeros(len(labels), device=labels.device)

    def __call__(self, iterate: Iterate) -> None:
        """Record ``iterate``."""
        self._record_point(iterate)
        if iterate.step < self.settings.steps:
            self._record_gradient(iterate)
        if "displacement" in self.metrics and self.last is not None:
            self._travelled += functional.flatten(iterate.images - self.last.images).norm(dim=1)
        self.first = self.first or iterate
        self.last = iterate

    def _keep(self, metric: str, values: Tensor) -> None:
        if metric in self.metrics:
            self.values.setdefault(metric, []).append(values)

    def _record_point(self, iterate: Iterate) -> None:
        values = values_at(iterate, self.labels, self.metrics)
        self.always_right &= values["accuracy"].bool()
        for metric, value in values.items():
            self._keep(metric, value)

    def _record_gradient(self, iterate: Iterate) -> None:
        if "norm" in self.metrics:
            self._keep("norm", iterate.own_norm)
        if "fosc" in self.metrics:
            self._keep("fosc", self.gap_at(iterate))
        if self.directions is not None:
            if self._membership is None:
                self._membership = self.directions.membership(self.numbers, iterate.unit)
            self.directions.add(iterate.step, iterate.unit, self._membership)
        if "path-variance" in self.metrics:
            self._unit_sum = iterate.unit.clone() if self._unit_sum is None else self._unit_sum.add_(iterate.unit)
            self._units += iterate.unit.any(dim=1)
        previous = self.last
        if previous is None:
            return
        if "cosine" in self.metrics:
            self._keep("cosine", functional.cosine(iterate.unit, previous.unit))
        if {"sign", "zero"} & self.metrics:
            agree, zero = functional.sign_agreement(iterate.signs, previous.signs)
            self._keep("sign", agree)
            self._keep("zero", zero)

    def gap_at(self, iterate: Iterate) -> Tensor:
        """Compute FOSC ``(B,)`` at an iterate with its gradient; see :func:`gradscope.functional.first_order_gap`."""
        offsets = functional.flatten(iterate.images - self.images)
        return functional.first_order_gap(offsets, iterate.unit, self.settings.norm, self.settings.epsilon)

    def of_the_path(self) -> dict[str, Tensor]:
        """Return metrics of the whole path, ``(B,)`` each: those with one value per image, and means of the others."""
        values = {
            metric: torch.stack(self.values[metric]).nanmean(dim=0)
            for metric in (*BETWEEN_ITERATES, "norm", "fosc")
            if metric in self.values
        }
        if self._unit_sum is not None:
            values["path-variance"] = 1 - functional.mean_pairwise_cosine(self._unit_sum, self._units)
        if "displacement" in self.metrics and self.first is not None and self.last is not None:
            reached = functional.flatten(self.last.images - self.first.images).norm(dim=1)
            values["displacement"] = reached / self._travelled
        return values


def values_at(iterate: Iterate, labels: Tensor, metrics: frozenset[str]) -> dict[str, Tensor]:
    """Compute the metrics of a point that need no gradient, ``(B,)`` each; accuracy is always included."""
    values = {"accuracy": (iterate.logits.argmax(dim=1) == labels).to(iterate.logits.dtype)}
    if "loss" in metrics:
        values["loss"] = cross_entropy(iterate.logits, labels)
    if "margin" in metrics:
        values["margin"] = functional.margin(iterate.logits, labels)
    if "entropy" in metrics:
        values["entropy"] = functional.entropy(iterate.logits)
    return values
