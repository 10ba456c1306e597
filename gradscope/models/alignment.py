"""Weight matching: permute the hidden units of one network to be as near as possible to those of another."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradscope.errors import GradscopeError
from gradscope.seeding import generator

#: A permutation for each hidden layer: which unit of the other network corresponds to each of the model's units.
Order = list[NDArray[np.intp]]
State = Mapping[str, Tensor]

#: The maximum number of sweeps over all layers. A sweep without improvement is the last.
_MOST_SWEEPS = 100
#: Layers that treat all channels the same, so that they commute with a permutation.
_PERMUTABLE = (
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh),
    *(nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Softsign, nn.LogSigmoid),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d),
    *(nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d),
)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class _Layer:
    """A hidden layer of ``units``: the names of the layer that computes them, of batch norms, and of the next layer.

    Names end with a dot, as in a state dict before ``weight``.
    """

    units: int
    incoming: str
    norms: tuple[str, ...]
    outgoing: str

    def own(self, state: State) -> Iterator[str]:
        """Name the tensors whose first axis is the units, with one block for each unit."""
        names = [self.incoming, *self.norms]
        kinds = ("weight", "bias", "running_mean", "running_var")
        yield from (name + kind for name in names for kind in kinds if name + kind in state)

    def next(self) -> str:
        """Name the tensor whose second axis is the units."""
        return f"{self.outgoing}weight"


def aligned_state(model: nn.Module, other: nn.Module, *, seed: int = 0) -> dict[str, Tensor]:
    """Permute the hidden units of ``other`` to match those of ``model``; returns its state (Ainsworth et al. 2023).

    Weight matching finds permutations P that maximise ``sum over layers l of <W_l, P_l V_l P_(l-1)^T>``, with W the
    weights of ``model`` and V those of ``other``, including biases and batch norm's parameters. This minimises the L2
    distance. It is coordinate descent over the layers in a random order, where each step is a linear assignment. It
    starts twice: from the identity, and from an order found layer by layer from the input. The nearer result is kept.
    The permuted network computes the same function as ``other``, up to the rounding of its sums.

    Raises :class:`GradscopeError` unless both networks are a chain of convolutions, linear layers and batch norm.
    """
    layers = _hidden_layers(model)
    if layers != _hidden_layers(other):
        raise GradscopeError("align must be left out if the two networks' layers differ")
    ours, theirs = ({key: value.detach() for key, value in net.state_dict().items()} for net in (model, other))
    if any(ours[key].shape != theirs[key].shape for layer in layers for key in [*layer.own(ours), layer.next()]):
        raise GradscopeError("align must be left out if the two networks' layers differ")
    identity = [np.arange(layer.units) for layer in layers]
    orders = [_matched(layers, _arrays(ours), _arrays(theirs), start, seed) for start in (identity, None)]
    states = [_permuted(theirs, layers, order) for order in orders]
    return max(states, key=lambda state: _inner(ours, state, model))


def _hidden_layers(model: nn.Module) -> list[_Layer]:
    """Find the layers of ``model`` whose units can be permuted: all convolutions and linear layers but the last."""
    leaves = list(_leaves(model))
    places = [place for place, (_, leaf) in enumerate(leaves) if isinstance(leaf, nn.Conv2d | nn.Linear)]
    if not places:
        odd = next((leaf for _, leaf in leaves if any(True for _ in leaf.parameters())), model)
        raise _not_sequential(odd)
    weighted = [leaves[place][1] for place in places]
    if len(set(map(id, weighted))) < len(weighted):
        raise GradscopeError("align must be left out for a network that uses one layer twice")
    return [_hidden_layer(leaves[start : stop + 1]) for start, stop in pairwise(places)]


def _hidden_layer(leaves: Sequence[tuple[str, nn.Module]]) -> _Layer:
    """Describe the hidden layer of ``leaves``, which begin and end with a convolution or linear layer."""
    (name, layer), *between, (following, reader) = leaves
    norms, flattened = [], isinstance(layer, nn.Linear)
    for norm, leaf in between:
        if isinstance(leaf, _NORMS):
            norms.append(norm)
        elif isinstance(leaf, nn.Flatten) and (leaf.start_dim, leaf.end_dim) == (1, -1):
            flattened = True
        elif not isinstance(leaf, _PERMUTABLE):
            raise _not_sequential(leaf)
    for end in (layer, reader):
        if "weight" not in dict(end.named_parameters(recurse=False)) or getattr(end, "groups", 1) != 1:
            raise _not_sequential(end)
    units = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
    read = reader.in_channels if isinstance(reader, nn.Conv2d) else reader.in_features
    assert isinstance(units, int)
    assert isinstance(read, int)
    if flattened != isinstance(reader, nn.Linear) or read % units:
        raise _not_sequential(reader)
    return _Layer(units, name, tuple(norms), following)


def _not_sequential(layer: nn.Module) -> GradscopeError:
    return GradscopeError(
        "align must be left out unless the network is a chain of convolutions, linear layers and batch norm "
        f"in nn.Sequential, got {type(layer).__name__}"
    )


def _leaves(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Flatten nested ``nn.Sequential`` into its layers in the order of calls, each with its name and a dot."""
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        for key, child in module._modules.items():
            if child is not None:
                yield from _leaves(child, f"{name}{key}.")
    else:
        yield name, module


def _arrays(state: State) -> dict[str, NDArray[np.float64]]:
    return {key: value.double().cpu().numpy() for key, value in state.items() if value.is_floating_point()}


def _matched(
    layers: Sequence[_Layer],
    ours: Mapping[str, NDArray[np.float64]],
    theirs: Mapping[str, NDArray[np.float64]],
    start: Order | None,
    seed: int,
) -> Order:
    """Run coordinate descent from ``start``; None starts from the best order by the incoming weights alone."""
    order = [] if start is None else [units.copy() for units in start]
    for place in range(len(layers)) if start is None else ():
        products = _products(layers, ours, theirs, order, place, outgoing=False)
        order.append(_assigned(products))
    for sweep in range(_MOST_SWEEPS):
        improved = False
        for place in torch.randperm(len(layers), generator=generator(seed, "weight matching", sweep)).tolist():
            products = _products(layers, ours, theirs, order, place, outgoing=True)
            better = _assigned(products)
            here = np.arange(layers[place].units)
            if products[here, better].sum() > products[here, order[place]].sum() + 1e-9 * np.abs(products).max():
                order[place], improved = better, True
        if not improved:
            break
    return order


def _assigned(products: NDArray[np.float64]) -> NDArray[np.intp]:
    _, chosen = scipy.optimize.linear_sum_assignment(products, maximize=True)
    return np.asarray(chosen, dtype=np.intp)


def _products(
    layers: Sequence[_Layer],
    ours: Mapping[str, NDArray[np.float64]],
    theirs: Mapping[str, NDArray[np.float64]],
    order: Order,
    place: int,
    *,
    outgoing: bool,
) -> NDArray[np.float64]:
    """Compute the inner products ``(units, units)`` of our units' weights with theirs, neighbours in their ``order``.

    With ``outgoing``, add the products of the weights that read the units.
    """
    layer = layers[place]
    total = np.zeros((layer.units, layer.units))
    for name in (layer.incoming, *layer.norms):
        for key in (f"{name}weight", f"{name}bias"):
            if key in ours:
                other = theirs[key]
                if place and key == layers[place - 1].next():
                    other = _reordered(other, order[place - 1], 1)
                total += ours[key].reshape(layer.units, -1) @ other.reshape(layer.units, -1).T
    if outgoing:
        key = layer.next()
        other = theirs[key] if place + 1 == len(layers) else _reordered(theirs[key], order[place + 1], 0)
        our_rows, their_rows = (_by_unit(array, layer.units) for array in (ours[key], other))
        total += our_rows @ their_rows.T
    return total


def _by_unit(weight: NDArray[np.float64], units: int) -> NDArray[np.float64]:
    """Reorder a weight ``(outputs, units * block, ...)`` into one row per unit that it reads."""
    blocks = weight.reshape(len(weight), units, -1)
    return blocks.swapaxes(0, 1).reshape(units, -1)


def _reordered(array: NDArray[np.float64], order: NDArray[np.intp], axis: int) -> NDArray[np.float64]:
    """Put the blocks of ``array`` along ``axis``, one per unit, in ``order``; flattened channels move together."""
    return np.take(array, _entries(array.shape[axis], order), axis=axis)


def _entries(length: int, order: NDArray[np.intp]) -> NDArray[np.intp]:
    block = length // len(order)
    return (order[:, None] * block + np.arange(block)).ravel()


def _permuted(state: State, layers: Sequence[_Layer], order: Order) -> dict[str, Tensor]:
    """Permute the units of each layer in ``state``, in the tensors that compute them and in those that read them."""
    permuted = dict(state)
    for layer, units in zip(layers, order, strict=True):
        for key, axis in [*((key, 0) for key in layer.own(state)), (layer.next(), 1)]:
            entries = torch.from_numpy(_entries(permuted[key].shape[axis], units)).to(permuted[key].device)
            permuted[key] = permuted[key].index_select(axis, entries)
    return permuted


def _inner(ours: State, theirs: State, model: nn.Module) -> float:
    return sum(float((ours[key].double() * theirs[key].double()).sum()) for key, _ in model.named_parameters())
