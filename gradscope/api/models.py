"""Models by name: our own checkpoints, and those trained elsewhere."""

from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn

from gradscope.models.checkpoint import Checkpoint
from gradscope.models.checkpoint import load as load_checkpoint
from gradscope.models.checkpoint import save as save_checkpoint
from gradscope.models.foreign import load_foreign
from gradscope.models.references import parse_reference
from gradscope.validation import given_path


def load(
    model: str | Path,
    *,
    weights: str | Path | None = None,
    mean: Any = None,
    std: Any = None,
    classes: int | None = None,
    channels: int = 3,
    size: tuple[int, int] = (224, 224),
    trust_code: bool = False,
) -> nn.Module:
    """Load a model that takes images in [0, 1], in evaluation mode, on the CPU.

    Parameters
    ----------
    model
        One of our checkpoints, which knows everything else itself, or a foreign model: ``torchvision:resnet18``,
        ``timm:resnet18``, ``package.module:factory`` or ``"package.module:factory(name='x', size=3)"``.
    weights
        The file of a foreign model's weights, ``.pt``, ``.pth`` or ``.safetensors``; no code from it is run.
    mean, std
        Normalisation of a foreign model, one number for each channel, put in front of it.
    classes, channels, size
        What a foreign model is built for; ``size`` is height and width. Where ``classes`` is left out, as many as
        ``weights`` have, or 1000.
    trust_code
        Whether a factory may be called, which runs its code.

    Returns
    -------
    torch.nn.Module
        A :class:`TrainedModel` where it is one of our checkpoints.

    Raises
    ------
    GradscopeError
        Where there is no such model, or its weights do not fit.

    """
    reference = parse_reference(str(given_path(model, "model")), "model")
    if not reference.is_foreign:
        return TrainedModel(load_checkpoint(Path(model), trust_code=trust_code))
    return load_foreign(
        reference,
        weights=None if weights is None else given_path(weights, "weights"),
        classes=classes,
        channels=channels,
        size=size,
        mean=mean,
        std=std,
        trust_code=trust_code,
    )


class TrainedModel(nn.Module):
    """One of our models, in evaluation mode: images ``(N, C, H, W)`` in [0, 1] -> logits ``(N, K)``."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.network = checkpoint.build()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.network(images)
        return logits

    @property
    def history(self) -> pd.DataFrame:
        """One row an epoch, as ``history.csv`` has it."""
        return pd.DataFrame(self.checkpoint.history)

    def save(self, path: str | Path) -> Path:
        """Write the checkpoint, which every command and :func:`load` read."""
        file = given_path(path, "path")
        save_checkpoint(file, self.checkpoint)
        return file
