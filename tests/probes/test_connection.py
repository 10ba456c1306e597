import copy

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from gradscope.probes import connection
from gradscope.probes.connection import bend_of, bezier, straight, train_bend
from gradscope.seeding import generator
from tests.conftest import make_convolutional, random_images


def weights_of(model):
    return {key: parameter.detach() for key, parameter in model.named_parameters()}


@pytest.fixture
def ends():
    first, second = make_convolutional(), make_convolutional()
    for parameter in second.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return weights_of(first), weights_of(second)


def test_the_curve_begins_and_ends_at_the_checkpoints_to_the_bit(ends):
    bend = {key: torch.randn_like(weight) for key, weight in ends[0].items()}
    for share, end in enumerate(ends):
        assert all(torch.equal(weight, end[key]) for key, weight in bezier(share, (ends[0], bend, ends[1])))
    for key, weight in bezier(0.5, (ends[0], bend, ends[1])):
        torch.testing.assert_close(weight, (ends[0][key] + 2 * bend[key] + ends[1][key]) / 4)
    for key, weight in bezier(0.3, (ends[0], bend, ends[1])):
        torch.testing.assert_close(weight, 0.49 * ends[0][key] + 0.42 * bend[key] + 0.09 * ends[1][key])


def test_it_starts_as_the_straight_line(ends):
    bend = bend_of(straight(ends), ends[0])
    for share in (0.0, 0.2, 0.7, 1.0):
        for key, weight in bezier(share, (ends[0], bend, ends[1])):
            torch.testing.assert_close(weight, (1 - share) * ends[0][key] + share * ends[1][key])


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_training_is_adams_on_the_expected_loss(ends, digest, batch_statistics):
    """An independent loop: autograd through the curve itself, and torch's own Adam."""
    model, images = make_convolutional(), random_images(60)
    before = digest(model)
    found = train_bend(*(model, ends, images, straight(ends), range(6), 6), seed=3, batch_statistics=batch_statistics)
    assert digest(model) == before
    theirs = copy.deepcopy(model).eval()
    if batch_statistics:
        theirs[1].train()
    bend = {key: (0.5 * (ends[0][key] + ends[1][key])).requires_grad_() for key in ends[0]}
    optimizer = torch.optim.Adam(bend.values(), lr=connection.LEARNING_RATE)
    for update in range(6):
        stream = generator(3, "curve", update)
        shares = (torch.arange(4) + torch.rand(4, generator=stream)) / 4
        chosen = torch.randint(60, (4, 32), generator=stream)
        loss = torch.zeros(())
        for share, indices in zip(shares.tolist(), chosen, strict=True):
            point = {
                key: (1 - share) ** 2 * ends[0][key] + 2 * share * (1 - share) * bend[key] + share**2 * ends[1][key]
                for key in bend
            }
            batch, labels = images.batch(indices, "cpu")
            loss = loss + F.cross_entropy(functional_call(theirs, point, (batch,)), labels) / 4
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = connection.LEARNING_RATE * (1 - update / 6)
        optimizer.step()
    for key, weight in bend_of(found, ends[0]).items():
        if batch_statistics and key == "0.bias":  # batch norm takes it off again: its gradient is rounding alone
            continue
        torch.testing.assert_close(weight, bend[key].detach(), rtol=1e-3, atol=1e-5)
        assert not torch.equal(weight, 0.5 * ends[0][key] + 0.5 * ends[1][key])


def test_training_in_pieces_is_the_same_to_the_bit(ends):
    model, images = make_convolutional(), random_images(60)
    whole = train_bend(model, ends, images, straight(ends), range(8), 8)
    state = straight(ends)
    for part in (range(3), range(3, 8)):
        state = train_bend(model, ends, images, state, part, 8)
    assert all(torch.equal(state[key], value) for key, value in whole.items())
    other = train_bend(model, ends, images, straight(ends), range(8), 8, seed=1)
    assert not torch.equal(other["bend"], whole["bend"])
