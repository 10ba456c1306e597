"""The stand-in device refuses what CUDA refuses, allows what CUDA allows, and counts waits and copies."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from tests.standin.device import DEVICE, Device, DeviceError

REFUSED = {
    "two devices": lambda here, there: there + here,
    "written on the CPU": lambda here, there: here.add_(there),
    "a CPU number written to": lambda here, there: here[0].add_(there[0]),
    "numbers put together": lambda here, there: torch.stack([there[0], here[0]]),
    "an index of the device into the CPU": lambda here, there: here[there.long()],
    "values of the CPU": lambda here, there: there.index_put_((there.long(),), here),
    "a gather by the CPU": lambda here, there: there.gather(0, here.long()),
    "a layer of the CPU": lambda here, there: nn.Linear(3, 1)(there),
}
ALLOWED = {
    "a CPU number": lambda here, there: there * here[2],
    "a CPU number in a choice": lambda here, there: torch.where(there > 1, there, here[0]),
    "a CPU number filled in": lambda here, there: there.index_fill(0, there[:1].long(), here[2]),
    "a CPU index": lambda here, there: there[here.long().flip(0)],
    "a copy": lambda here, there: torch.zeros_like(there).copy_(here) + there,
    "a number": lambda here, there: there * 2 + 1,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cuda_refuses(name):
    with Device(), pytest.raises(DeviceError, match="same device"):
        REFUSED[name](torch.arange(3.0), torch.arange(3.0, device=DEVICE))


@pytest.mark.parametrize("name", ALLOWED)
def test_what_cuda_allows_gives_the_cpus_numbers(name):
    here = torch.arange(3.0)
    with Device():
        found = ALLOWED[name](here, torch.arange(3.0, device=DEVICE))
        assert found.device == DEVICE
        assert torch.equal(found.cpu(), ALLOWED[name](here, torch.arange(3.0)))


def test_generators_and_arrays_are_refused():
    stream = torch.Generator().manual_seed(0)
    with Device():
        there = torch.zeros(3, device=DEVICE)
        with pytest.raises(DeviceError, match="generator"):
            there.normal_(generator=stream)
        with pytest.raises(DeviceError, match="generator"):
            torch.rand(3, device=DEVICE, generator=stream)
        for array in (there.numpy, lambda: np.asarray(there)):
            with pytest.raises(TypeError, match="numpy"):
                array()
        assert there.tolist() == [0, 0, 0]


def test_waiting_and_copying_are_counted():
    with Device() as device:
        there = torch.arange(3.0).to(DEVICE)
        assert device.copies.total() == 1
        assert not device.synchronisations
        assert float(there[1]) == 1
        assert bool(there.any())
        assert there[there > 0].tolist() == [1, 2]
        there[there > 1] = 5
        assert there.nonzero().shape == (2, 1)
    assert device.copies.total() == 1
    assert device.synchronisations == {
        "_local_scalar_dense": 2,
        "boolean index": 1,
        "copy to the CPU": 1,
        "nonzero": 1,
    }


def test_a_module_keeps_its_parameters_when_it_moves():
    model = nn.Linear(3, 2)
    weight, values = model.weight, model.weight.detach().clone()
    file = io.BytesIO()
    with Device():
        model.to(DEVICE)
        assert model.weight is weight
        assert weight.device == DEVICE
        double = copy.deepcopy(model).double()
        double.weight.data.zero_()
        torch.save(model.state_dict(), file)
        assert torch.equal(model.weight.detach().cpu(), values)
    file.seek(0)
    assert torch.equal(torch.load(file)["weight"], values)
