"""Replay a training update on a GPU as a CUDA graph, in place of hundreds of kernel launches."""

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor

from gradscope.errors import caution
from gradscope.training.batches import Batch
from gradscope.training.objectives import Draws

#: Updates before the recording; during them libraries choose their algorithms and the optimiser creates its state.
WARM_UP = 3


class Replayed:
    """``update`` as a CUDA graph, for batches of one shape.

    The first :data:`WARM_UP` calls run it eagerly. The next call records the kernels that it launches, with their
    memory. From then on a call copies its batch to the recorded memory and replays the graph. So ``update`` must launch
    the same kernels for all values and change tensors in place: it may not read a value, and the learning rate is a
    tensor. If the recording fails, a warning says so, and the updates run eagerly.
    """

    def __init__(self, update: Callable[[Batch], None]) -> None:
        self.update = update
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream = torch.cuda.Stream()
        self.batch: Batch | None = None

    @property
    def is_recorded(self) -> bool:
        """Whether calls replay the graph."""
        return self.graph is not None

    def __call__(self, batch: Batch) -> None:
        """Run one update on ``batch``."""
        self.calls += 1
        if self.calls == WARM_UP + 1:
            self._record(batch)
        if self.graph is None or self.batch is None:
            # On the stream of the later recording, because autograd's accumulators belong to a stream.
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.update(batch)
            torch.cuda.current_stream().wait_stream(self.stream)
            return
        for place, tensor in zip(_tensors(self.batch), _tensors(batch), strict=True):
            place.copy_(tensor, non_blocking=True)
        self.graph.replay()

    def _record(self, batch: Batch) -> None:
        graph, kept = torch.cuda.CUDAGraph(), _copied(batch)
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.update(kept)
        except RuntimeError as error:
            why = str(error).splitlines()[0]
            caution(f"training continues without a CUDA graph, as recording it failed: {why}")
            return
        self.graph, self.batch = graph, kept


def _tensors(batch: Batch) -> list[Tensor]:
    draws = [getattr(part, field.name) for part in (batch.clean, batch.adversarial) for field in fields(Draws)]
    return [batch.images, batch.labels, *draws, batch.noise]


def _copied(batch: Batch) -> Batch:
    images, labels, *draws, noise = (tensor.clone() for tensor in _tensors(batch))
    half = len(draws) // 2
    return Batch(images, labels, Draws(*draws[:half]), Draws(*draws[half:]), noise)
