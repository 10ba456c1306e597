"""Baselines for the benchmarks, written like the paper's code."""

from itertools import product

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from gradscope.vision import torchvision


def tracked_pgd(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> dict[str, list[float]]:
    """Run PGD with statistics: mean loss, a backward pass through the parameters, one number read per step."""
    tracked: dict[str, list[float]] = {"cosine": [], "sign": [], "norm": [], "dispersion": []}
    means = []
    eta = _clip(torch.zeros_like(images).uniform_(-1, 1), 1.0)
    adversarial, previous = images + eta, None
    for _ in range(steps):
        point = adversarial.clone().detach().requires_grad_(True)
        F.cross_entropy(model(point), labels).backward()
        gradient = point.grad.detach()
        squared = gradient.square().sum(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
        flat = gradient.flatten(1)
        unit = flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-12)
        tracked["norm"].append(flat.norm(dim=1).mean().item())
        if previous is not None:
            before = previous / previous.norm(dim=1, keepdim=True).clamp(min=1e-12)
            tracked["cosine"].append((unit * before).sum(dim=1).clamp(-1, 1).mean().item())
            tracked["sign"].append((flat.sign() == previous.sign()).float().mean(dim=1).mean().item())
        mean = unit.mean(dim=0)
        means.append(mean)
        tracked["dispersion"].append(1 - (unit @ (mean / mean.norm().clamp(min=1e-12))).mean().item())
        previous = flat
        eta = _clip(point.detach() + 0.1 * gradient / squared.sqrt() - images, 1.0)
        adversarial = images + eta
    return tracked


def _clip(eta: Tensor, epsilon: float) -> Tensor:
    norms = eta.square().sum(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12).sqrt()
    return eta * (epsilon / norms).clamp(max=1)


def input_plane(
    model: nn.Module, image: Tensor, label: Tensor, first: Tensor, second: Tensor, axis: list[float]
) -> list[float]:
    """Compute the loss on a plane: one forward pass and one number read per point."""
    with torch.no_grad():
        return [
            F.cross_entropy(model(image + a * first + b * second), label).item() for a, b in product(axis, repeat=2)
        ]


def _policy_loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    policy = torch.distributions.Categorical(logits=model(images))
    actions = policy.sample()
    return -(policy.log_prob(actions) * (actions == labels).float()).mean()


def adversarial_update(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    """Make one RL-adv update: compute both losses twice, and backpropagate the first clean loss too."""
    optimizer.zero_grad()
    states = images.clone().detach().requires_grad_(True)
    first = _policy_loss(model, states, labels)
    first.backward(retain_graph=True)
    example = (states.detach() + 0.01 * states.grad.sign()).clamp(0, 1)
    _policy_loss(model, example, labels).item()
    optimizer.zero_grad()
    total = _policy_loss(model, states, labels) + _policy_loss(model, example, labels)
    total.backward()
    optimizer.step()


class PilImages(Dataset):
    """Images augmented one at a time by PIL transforms."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images.permute(0, 2, 3, 1).numpy()
        self.labels = labels.tolist()
        transforms = torchvision.transforms
        self.transform = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(),
                transforms.RandomAffine(0, translate=(0.1, 0.1)),
                transforms.ToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def supervised_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader, device: str) -> None:
    """Train an epoch on cross-entropy in float32; read the running loss at every update."""
    model.train()
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
