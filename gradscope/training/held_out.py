"""How well the network does on validation images after an epoch: when clean, and under attack."""

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

#: How many validation images are attacked, at most: an epoch takes a few per cent longer.
ATTACKED = 256
#: Steps of PGD on them.
STEPS = 10


class HeldOut:
    """The images ``held_out`` of ``images``, which every process of ``fabric`` judges its share of."""

    def __init__(self, fabric: "Fabric", images: ImageSet, training: Training, held_out: Tensor) -> None:
        self.fabric, self.images, self.training = fabric, images, training
        self.count = len(held_out)
        sample = held_out
        if self.count > ATTACKED:
            sample = held_out[stratified_sample(images.labels.cpu()[held_out], ATTACKED, training.seed)]
        self.attacked_count = len(sample)
        # What this process judges: indices beside the images, and those that name random streams on the CPU.
        share = slice(fabric.global_rank, None, fabric.world_size)
        self.judged, self.attacked = held_out[share].to(images.images.device), sample[share]

    def judge(self, network: nn.Module, adversary: Adversary | None) -> dict[str, float | None]:
        """What a row of the history says of the validation images, shared by all processes.

        No random stream of the training is read, and the network is left as it was found.
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
        """Mean cross-entropy in nats, accuracy, and the share of the commonest prediction, in float32."""
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
        """Share of the attacked images right when clean and under FGSM, and under PGD.

        Each image's PGD starts at the same point in every epoch. Both attacks climb the log-odds: in exact arithmetic
        that is cross-entropy's path, but the gradient of a confident network's cross-entropy is rounded to 0.
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
        """The sums of all processes, divided by how many images they are over."""
        total = self.fabric.all_reduce(sums, reduce_op="sum")
        assert isinstance(total, Tensor)
        means: list[float] = (total / count).tolist()
        return means
