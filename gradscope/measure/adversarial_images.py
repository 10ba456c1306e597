"""Write the adversarial images of an attack to a file, and check them on the model, loaded again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradscope.attacks.outcome import Outcome
from gradscope.errors import GradscopeError, reason_of
from gradscope.functional import fooled
from gradscope.measure.inputs import Chosen, Entry, Inputs
from gradscope.models.inspection import measuring
from gradscope.results.arrays import read_arrays
from gradscope.results.files import atomic
from gradscope.seeding import seeded

Arrays = Mapping[str, NDArray[Any]]


def felled_images(label: str, outcome: Outcome, chosen: Chosen) -> Arrays:
    """Collect every point ``(M, C, H, W)`` at which an attack fooled the model, with image, attack and checkpoint."""
    shape = tuple(chosen.images.images.shape[1:])
    points, numbers, labels, names = [torch.zeros(0, *shape)], [], [], []
    for name, attack in outcome.attacks.items():
        if attack.adversarial is not None:
            places = attack.attacked[attack.fooled]
            points.append(attack.adversarial[attack.fooled].float())
            numbers += outcome.numbers[places].tolist()
            labels += outcome.labels[places].tolist()
            names += [name] * len(places)
    return {
        "images": torch.cat(points).numpy(),
        "index": np.array(numbers, dtype=np.int64),
        "label": np.array(labels, dtype=np.int64),
        "attack": np.array(names, dtype=np.str_),
        "checkpoint": np.array([label] * len(names), dtype=np.str_),
        "epsilon": np.full(len(names), outcome.threat.epsilon),
    }


def write_images(path: Path, parts: Sequence[Arrays]) -> None:
    """Write all parts as one .npz."""
    joined: dict[str, Any] = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **joined)


def _read_images(path: Path) -> Arrays:
    try:
        return read_arrays(path)
    except (OSError, ValueError) as error:
        raise GradscopeError(f"out: {path} was damaged before it was read back: {reason_of(error)}") from None


def rescore(path: Path, entry: Entry, inputs: Inputs, batch_size: int) -> dict[str, int]:
    """Evaluate a model's saved images, read back from ``path``, on the model, loaded again.

    "disagreeing" counts the images that the model now gets right, although they fooled it when they were made. Batches
    of another size round differently, and a random model draws other numbers.
    """
    named = inputs.references(inputs.request.options.others.get("surrogate", ()))
    reference = next(source for source in named if source.text == entry.reference.text)
    subject = inputs.attacked(reference, entry.chosen.images)
    saved = _read_images(path)
    own = saved["checkpoint"] == subject.label
    points, labels = torch.from_numpy(saved["images"][own]), torch.from_numpy(saved["label"][own])
    disagreeing = 0
    seed = inputs.request.options.seed
    with measuring(subject.model), torch.no_grad(), seeded(seed, "rescore"):
        for part in torch.arange(len(points)).split(batch_size) if len(points) else ():
            logits = subject.model(points[part].to(inputs.device))
            disagreeing += int((~fooled(logits, labels[part].to(inputs.device))).sum())
    return {"images": len(points), "disagreeing": disagreeing, "batch_size": batch_size}
