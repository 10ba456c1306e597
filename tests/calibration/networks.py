"""Small networks for CIFAR-10 and how they are trained: minutes of one core each."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscope.attacks.pgd import pgd, prepared
from gradscope.config import PGD
from gradscope.data.image_set import ImageSet
from gradscope.functional import flatten
from gradscope.training.precision import computes_in_bf16

#: The loss of a model on images ``(N, C, H, W)`` in [0, 1] and labels ``(N,)``.
Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Standardised(nn.Module):
    """Pixels from [0, 1] to about mean 0, variance 1."""

    def forward(self, images: Tensor) -> Tensor:
        return (images - 0.47) / 0.25


def convolutional(
    seed: int,
    *,
    width: int = 32,
    channels: int = 3,
    outputs: int = 10,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Four convolutions and a linear layer, 150,000 parameters at the usual width."""
    torch.manual_seed(seed)
    sizes = [(channels, width, 2), (width, 2 * width, 2), (2 * width, 2 * width, 1), (2 * width, 4 * width, 2)]
    layers: list[nn.Module] = [Standardised()]
    for inputs, features, stride in sizes:
        layers += [nn.Conv2d(inputs, features, 3, stride, 1, bias=False), nn.BatchNorm2d(features), activation()]
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16 * width, outputs))


class Residual(nn.Module):
    """Two convolutions and what goes past them."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(features, features, 3, padding=1) for _ in range(2))

    def forward(self, features: Tensor) -> Tensor:
        return features + self.second(F.gelu(self.first(F.gelu(features))))


def residual(seed: int) -> nn.Sequential:
    """Patches of 4 x 4 pixels, three residual blocks, GELU, no batch norm."""
    torch.manual_seed(seed)
    blocks = [Residual(48) for _ in range(3)]
    return nn.Sequential(
        Standardised(), nn.Conv2d(3, 48, 4, 4), *blocks, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(768, 10)
    )


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images).float(), labels)


def fit(
    model: nn.Module,
    images: ImageSet,
    seed: int,
    *,
    epochs: int = 8,
    objective: Objective = cross_entropy,
    decay: float = 5e-4,
    attack: PGD | None = None,
) -> nn.Module:
    """Train by AdamW, one cycle, on images flipped and shifted; on ``attack``'s examples of them where there is one.

    In bfloat16 where the processor has it, which halves the time; an objective takes its loss in float32.
    """
    low = torch.autocast("cpu", torch.bfloat16, enabled=computes_in_bf16(torch.device("cpu")))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=decay)
    total = epochs * -(-len(images) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total)
    stream = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    for _ in range(epochs):
        for points, labels in _batches(images, stream):
            if attack is not None:
                with low, prepared(model.eval(), attack) as attacked:
                    points = pgd(attacked, points, labels, attack).points
            optimizer.zero_grad()
            with low:
                loss = objective(model.train(), points, labels)
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


_BATCH = 128


def _batches(images: ImageSet, stream: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    for part in torch.randperm(len(images), generator=stream).split(_BATCH):
        points, labels = images.batch(part, "cpu")
        padded = F.pad(points, (2, 2, 2, 2), mode="reflect")
        down, right, flip = (int(torch.randint(0, most, (), generator=stream)) for most in (5, 5, 2))
        points = padded[:, :, down : down + 32, right : right + 32]
        yield (points.flip(3) if flip else points).contiguous(), labels


def top_share(features: Tensor, share: float) -> Tensor:
    """The value ``(N, 1, ...)`` that the largest ``share`` of each sample's features reach."""
    flat = flatten(features)
    least = flat.topk(max(1, round(share * flat.shape[1])), dim=1).values[:, -1]
    return least.reshape(-1, *[1] * (features.dim() - 1))
