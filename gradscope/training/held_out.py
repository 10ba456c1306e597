"""Evaluate the network on validation images after an epoch: clean, and under attack."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscope.attacks.pgd import Streams, pgd
from gradscope.config import Adversary, Training, attack_settings
from gradscope.data.image_set import ImageSet, stratified_sample
from gradscope.losses import cross_entropy
from gradscope.models.inspection import evaluating, measuring
from gradscope.seeding import seeded

if TYPE_CHECKING:
    from lightning_fabric import Fabric

#: The maximum number of validation images to attack; it makes an epoch a few per cent longer.
ATTACKED = 256
#: Steps of the PGD on them.
STEPS = 10


class HeldOut:
    """The validation images, ``held_out`` of ``images``; each process of ``fabric`` evaluates its share."""

    def __init__(self, fabric: "Fabric", images: ImageSet, training: Training, held_out: Tensor) -> None:
        self.fabric, self.images, self.training = fabric, images, training
        self.count = len(held_out)
        sample = held_out
        if self.count > ATTACKED:
            sample = held_out[stratified_sample(images.labels.cpu()[held_out], ATTACKED, training.seed)]
        self.attacked_count = len(sample)
        # This process's share: indices on the images' device, and on the CPU those that name random streams.
        share = slice(fabric.global_rank, None, fabric.world_size)
        self.judged, self.attacked = held_out[share].to(images.images.device), sample[share]

    def judge(self, network: nn.Module, adversary: Adversary | None) -> dict[str, float | None]:
        """Compute the columns of the history about the validation images, over all processes.

        This reads no random stream of the training and does not change the network.
        """
        fgsm, strong = None, None
        with evaluating(network), seeded(self.training.seed, "validation"):
            loss, accuracy, most = self._when_clean(network)
            if adversary is not None:
                fgsm, strong = self._under_attack(network, adversary)
        return {
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            "fgsm_accuracy": fgsm,
            "pgd_accuracy": strong,
            "most_predicted": most,
        }

    def _when_clean(self, network: nn.Module) -> tuple[float, float, float]:
        """Compute mean cross-entropy in nats, accuracy, and the share of the most frequent prediction, in float32."""
        classes, device = len(self.images.classes), self.fabric.device
        sums = torch.zeros(2 + classes, dtype=torch.float64, device=device)
        with torch.no_grad():
            for indices in self.judged.split(self.training.batch_size):
                images, labels = self.images.batch(indices, device)
                logits = network(images.contiguous(memory_format=torch.channels_last))
                predictions = logits.argmax(dim=1)
                sums[0] += cross_entropy(logits, labels).sum()
                sums[1] += (predictions == labels).sum()
                sums[2:] += F.one_hot(predictions, classes).sum(dim=0)
        loss, accuracy, *predicted = self._means(sums, self.count)
        return loss, accuracy, max(predicted)

    def _under_attack(self, network: nn.Module, adversary: Adversary) -> tuple[float, float]:
        """Compute the shares of attacked images right when clean and under FGSM, and under PGD.

        An image's PGD starts at the same point in every epoch. Both attacks maximise the log-odds. In exact arithmetic
        this gives the same path as cross-entropy, but the gradient of a confident network's cross-entropy rounds to 0.
        """
        ball = {"norm": adversary.norm, "epsilon": adversary.epsilon, "loss": "log-odds"}
        attacks = attack_settings("fgsm", ball), attack_settings("pgd", ball | {"steps": STEPS})
        sums = torch.zeros(len(attacks), dtype=torch.float64, device=self.fabric.device)
        with measuring(network):
            for indices in self.attacked.split(self.training.batch_size):
                images, labels = self.images.batch(indices, self.fabric.device)
                for place, settings in enumerate(attacks):
                    streams = Streams(self.training.seed, indices)
                    reached = pgd(network, images, labels, settings, streams=streams, keep_first=True)
                    sums[place] += (~reached.fooled).sum()
        fgsm, strong = self._means(sums, self.attacked_count)
        return fgsm, strong

    def _means(self, sums: Tensor, count: int) -> list[float]:
        """Add the sums of all processes and divide them by ``count``, the number of images."""
        total = self.fabric.all_reduce(sums, reduce_op="sum")
        assert isinstance(total, Tensor)
        means: list[float] = (total / count).tolist()
        return means
