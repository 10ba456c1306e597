"""The models of the calibration, each trained once and kept as a file of weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from gradscope.config import PGD
from gradscope.data.image_set import ImageSet, stratified_sample
from tests.calibration.defences import DEFENCES, Train
from tests.calibration.networks import convolutional, fit, residual

#: Images of the training set, as many of each class.
TRAINED_ON = 20_000


@dataclass(frozen=True)
class Network:
    """A network: how it is built from a seed, and trained."""

    build: Callable[[int], nn.Module]
    train: Train


def smoothed(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(images).float(), labels, label_smoothing=0.1)


_ATTACK = PGD(norm="linf", epsilon=4 / 255, step_size=2 / 255, steps=3, start="ball")

#: Networks without a defence, and one that is trained adversarially (Madry et al. 2018).
NETWORKS: dict[str, Network] = {
    "SL": Network(convolutional, fit),
    "SL smoothed, decay": Network(convolutional, partial(fit, objective=smoothed, decay=0.05)),
    "SL-adv": Network(convolutional, partial(fit, attack=_ATTACK)),
    "residual": Network(residual, fit),
}
ALL: dict[str, Network] = {
    **NETWORKS,
    **{name: Network(defence.build, defence.train) for name, defence in DEFENCES.items()},
}


def trained(name: str, seed: int, images: ImageSet, folder: Path) -> nn.Module:
    """The model called ``name``: read from ``folder``, or trained and written there."""
    path = folder / f"{name.replace(' ', '-').replace(',', '')}-s{seed}.pt"
    network = ALL[name]
    model = network.build(seed)
    if path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    few = images.subset(stratified_sample(images.labels, min(TRAINED_ON, len(images)), 0))
    network.train(model, few, seed)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    torch.save(model.state_dict(), unfinished)
    unfinished.replace(path)
    return model.eval()
