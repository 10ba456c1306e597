"""Measure the weights saved after each epoch of a training: the sharpness of the loss, and the accuracies."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from gradscope.config import PGD
from gradscope.distributed.units import Unit, Values
from gradscope.measure.inputs import Chosen
from gradscope.measure.runner import Row
from gradscope.models.inspection import copied, laid_out, measuring
from gradscope.probes.spectrum import find_eigenpairs, probe, random_signs, random_unit, weight_matrix
from gradscope.probes.weight_landscape import Measures
from gradscope.results.metrics import METRICS, SPECTRUM_METRICS
from gradscope.results.stats import UNDEFINED, Interval, jackknife_interval, mean_interval, wilson_interval
from gradscope.seeding import generator

#: Number of eigenvalues, the maximum number of Hessian products for them, and the random vectors of the trace.
EIGENVALUES, PRODUCTS, PROBES = 3, 50, 10
#: Images per batch of second derivatives, whose graph must fit in memory.
_BATCH = 64


@dataclass(frozen=True)
class SavedEpoch:
    """The weights and buffers of a training after ``epoch`` epochs."""

    epoch: int
    state: Mapping[str, Tensor]


class AlongEpochs:
    """Measures saved epochs of ``model`` on the same images, clean and under ``attack``, which runs anew on each."""

    def __init__(
        self,
        model: nn.Module,
        epochs: Sequence[SavedEpoch],
        images: Chosen,
        attack: PGD,
        seed: int,
        device: torch.device,
    ) -> None:
        self.model, self.epochs, self.seed, self.attack = model, epochs, seed, attack
        self.measures = Measures(images.images, images.numbers, device, attack=attack, seed=seed)
        parts = torch.arange(len(images.images)).split(_BATCH)
        self.batches = [(laid_out(batch), labels) for batch, labels in (images.images.batch(p, device) for p in parts)]

    def units(self) -> list[Unit]:
        """Return one unit of work for each epoch."""
        return [(f"epoch-{number}", partial(self._measure, saved)) for number, saved in enumerate(self.epochs)]

    def _measure(self, saved: SavedEpoch) -> Values:
        moving = copied(self.model)
        moving.load_state_dict(dict(saved.state))
        size = sum(parameter.numel() for parameter in moving.parameters())
        device = self.batches[0][0].device
        with measuring(moving), torch.no_grad():
            sums = {f"sum-{name}": torch.as_tensor(value) for name, value in self.measures(moving).items()}
            product = weight_matrix(moving, self.batches)
            start = random_unit((1, size), self.seed, "sharpness").to(device)
            eigenpairs, _ = find_eigenpairs(
                product, start, generator(self.seed, "beyond sharpness"), count=EIGENVALUES, most=PRODUCTS
            )
            traces = [
                probe(
                    *(product, random_signs((1, size), self.seed, "trace", number).to(device)),
                    generator(self.seed, "beyond trace", number),
                    most=1,
                    known=eigenpairs,
                ).traces[0, 0]
                for number in range(PROBES)
            ]
        pairs = {"value": eigenpairs.values[0], "residual": eigenpairs.residuals[0]}
        return {**sums, **pairs, "traces": torch.stack(traces)}

    def rows(self, identity: Row, attack: str, found: Sequence[Values]) -> Iterator[Row]:
        """Yield the rows of EPOCHS; ``attack`` is the attack's name."""
        count = self.measures.count
        for saved, values in zip(self.epochs, found, strict=True):
            at = identity | {"attack": "none", "epoch": saved.epoch}
            traces = values["traces"].double()
            mean, std, n = float(traces.mean()), float(traces.std()), len(traces)
            yield _row(at, "eigenvalue", float(values["value"][0]), UNDEFINED, 1)
            yield _row(at, "residual", float(values["residual"][0]), UNDEFINED, 1)
            yield _row(at, "trace", mean, mean_interval(mean, std, n), n, std / math.sqrt(n))
            for prefix, where in (("", at), ("adversarial_", at | {"attack": attack} | self.attack.ball)):
                losses, right = (values[f"sum-{prefix}{name}"] for name in ("loss", "right"))
                loss = self.measures.mean(losses)
                interval = jackknife_interval(float(loss), self.measures.leave_one_out(losses).tolist())
                yield _row(where, "loss", float(loss), interval, count)
                correct = int(right.sum())
                yield _row(where, "accuracy", correct / count, wilson_interval(correct, count), count)


def _row(identity: Row, metric: str, value: float, interval: Interval, n: int, error: float = math.nan) -> Row:
    known = SPECTRUM_METRICS.get(metric) or METRICS[metric]
    interval = interval.within(known.low, known.high)
    columns = {"metric": metric, "unit": known.unit, "value": value, "error": error}
    return identity | columns | {"ci_low": interval.low, "ci_high": interval.high, "n": n}
