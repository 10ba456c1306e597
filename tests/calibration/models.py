"""The models that the audit is tried on, each with what is true of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from gradscope.data.image_set import ImageSet, stratified_sample
from tests.calibration.defences import DEFENCES, Defence, bypassed
from tests.calibration.train import trained
from tests.masks import MASKS, Behind, Votes

#: Images that votes are taken from.
_FEW = 2000
#: Seeds of the networks that are audited as they are, and of the one behind the masks; the audit's thresholds were
#: set on others.
SEEDS = {"SL": 7, "SL smoothed, decay": 4, "SL-adv": 5, "residual": 6}
MASKED_SEED = 3
#: Factor of the logits before tanh.
_STEEPER = 20


@dataclass(frozen=True)
class Case:
    """A model, and the cause that the audit has to name; None of an honest one."""

    kind: str
    make: Callable[[ImageSet, Path], nn.Module]
    cause: str | None = None
    defence: Defence | None = None
    seed: int = 0

    def way_round(self, model: nn.Module, images: ImageSet, folder: Path) -> nn.Module:
        """What a bypass takes the gradient of: of a mask, the network behind it."""
        if self.kind == "masked":
            return trained("SL", self.seed, images, folder)
        return bypassed(model)


def _network(name: str, seed: int) -> Callable[[ImageSet, Path], nn.Module]:
    return lambda images, folder: trained(name, seed, images, folder)


def _scaled(factor: float, seed: int) -> Callable[[ImageSet, Path], nn.Module]:
    def make(images: ImageSet, folder: Path) -> nn.Module:
        plain = trained("SL", seed, images, folder)
        return Behind(plain, after=lambda logits: factor * logits).eval()

    return make


def _masked(name: str, seed: int) -> Callable[[ImageSet, Path], nn.Module]:
    def make(images: ImageSet, folder: Path) -> nn.Module:
        plain = trained("SL", seed, images, folder)
        assert isinstance(plain, nn.Sequential)
        if name == "votes":
            return Votes(plain, images.subset(stratified_sample(images.labels, min(_FEW, len(images)), 0))).eval()
        # As they are, this network's logits stay where tanh still has a slope, which plain PGD follows.
        behind = Behind(plain, after=lambda logits: _STEEPER * logits) if name == "30 tanh" else plain
        return MASKS[name][0](behind).eval()

    return make


def cases(shift: int = 0) -> dict[str, Case]:
    """Every model by name, ``shift`` added to its seed.

    Of the masks the noise layer is left out: a network that was trained without noise is at a guess behind it.
    """
    seeds = {name: seed + shift for name, seed in SEEDS.items()}
    plain, masked = seeds["SL"], MASKED_SEED + shift
    found = {name: Case("honest", _network(name, seed), seed=seed) for name, seed in seeds.items()}
    found |= {f"logits x {factor}": Case("honest", _scaled(factor, plain), seed=plain) for factor in (2, 3)}
    for name, (_, cause) in MASKS.items():
        if name != "noise layer":
            called = f"{name} of logits x {_STEEPER}" if name == "30 tanh" else name
            found[called] = Case("masked", _masked(name, masked), cause, seed=masked)
    found["votes"] = Case("masked", _masked("votes", masked), "missing gradient", seed=masked)
    for name, defence in DEFENCES.items():
        found[name] = Case("defence", _network(name, shift), defence.cause, defence, shift)
    return found


CASES = cases()
