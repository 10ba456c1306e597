import pytest
import torch

from gradscope.attacks.registry import ATTACKS
from tests.cuda.measurements import EPSILONS, attack

pytestmark = pytest.mark.cuda

#: How many of 24 images may differ between devices. Both use random numbers from the CPU, so paths begin alike. They
#: separate where rounding changes the sign of a gradient near zero, or a decision at a checkpoint of auto-PGD. Then an
#: image that the attack can barely fool may be fooled on only one device.
MAY_DIFFER = 2


@pytest.mark.parametrize("norm", EPSILONS)
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_does_on_the_device_what_it_does_on_the_cpu(name, norm, model, images, device, to_device):
    expected = attack(model, images, torch.device("cpu"), norm, name)
    found = attack(to_device(model), images, device, norm, name)
    # A clean logit would have to lie within 1e-5 of another one.
    assert torch.equal(found.right, expected.right)
    assert not found.skipped
    assert not expected.skipped
    assert int((found.standing() != expected.standing()).sum()) <= MAY_DIFFER
    points = found.attacks[name]
    assert points.forward > 0
    assert ("gradient" in ATTACKS[name].needs) == (points.backward > 0)
    assert (points.distance[points.fooled] <= EPSILONS[norm] * (1 + 1e-5)).all()
    # The device's points, judged on the CPU; only one that lies within rounding of a boundary may change sides.
    assert points.adversarial is not None
    with torch.no_grad():
        judged = model(points.adversarial).argmax(dim=1) != images.labels[points.attacked]
    assert int((judged != points.fooled).sum()) <= MAY_DIFFER
