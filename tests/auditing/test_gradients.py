import torch
from torch import nn

from gradscope.attacks.threat import ThreatModel
from gradscope.auditing.gradients import against_differences, along_the_path, in_float64, is_dead, kinds_of_slope
from gradscope.auditing.verdict import examine
from gradscope.config import PGD

SETTINGS = PGD(norm="linf", epsilon=0.1, step_size=0.01, precision="float64")


def looked_at(digits, model, settings=SETTINGS):
    images, labels = digits.test.batch(torch.arange(20), "cpu")
    return against_differences(model, images, labels, torch.arange(20), settings, 8, 0)


def test_slopes_of_a_linear_model_are_its_weights(digits, zoo):
    found = looked_at(digits, zoo(0).honest["linear"])
    assert torch.allclose(found["autograd"], found["small"], atol=1e-9)


def test_each_mask_has_its_kind_of_slope(digits, zoo):
    wanted = {"input quantised": "stepped", "backward zero": "missing", "backward noise": "false"}
    for name, kind in wanted.items():
        kinds = kinds_of_slope(looked_at(digits, zoo(0).masked[name][0]))
        assert float(kinds[kind].double().mean()) > 0.8, name
    for name, model in zoo(0).honest.items():
        kinds = kinds_of_slope(looked_at(digits, model))
        assert not any(kind.any() for kind in kinds.values()), name


def test_fine_rounding_is_stepped_and_rounding_to_float32_is_no_kind(digits, zoo):
    """Over a difference of 1e-3 some of 64 pixels change one of 4000 levels; over 1e-6 hardly any does."""

    class Before(nn.Module):
        def __init__(self, change):
            super().__init__()
            self.model, self.change = zoo(0).honest["SL"], change

        def forward(self, images):
            return self.model(self.change(images))

    fine = kinds_of_slope(looked_at(digits, Before(lambda images: (4000 * images).round() / 4000)))
    assert float(fine["stepped"].double().mean()) > 0.8
    single = kinds_of_slope(looked_at(digits, Before(lambda images: images.float().to(images.dtype))))
    assert not any(kind.any() for kind in single.values())


def test_a_random_model_is_differenced_with_its_numbers_held(digits, zoo):
    kinds = kinds_of_slope(looked_at(digits, zoo(0).masked["noise layer"][0]))
    assert not any(kind.any() for kind in kinds.values())


def test_float32_bends_the_gradient_of_saturated_logits_only(digits, zoo):
    images, labels = digits.test.batch(torch.arange(20), "cpu")
    plain = PGD(norm="linf", epsilon=0.1, step_size=0.01)

    def cosine(model: nn.Module) -> torch.Tensor:
        return in_float64(model, images, labels, torch.arange(20), plain, 0)["cosine"]

    assert float(cosine(zoo(0).honest["SL"]).min()) > 0.99
    assert float((cosine(zoo(0).masked["logits x 100"][0]) < 0.99).double().mean()) > 0.3


def test_dead_is_no_loss_no_gradient_or_no_number():
    loss, norm = torch.tensor([0.0, 1.0, 1.0, 1.0]), torch.tensor([1.0, 0.0, torch.nan, 1.0])
    assert is_dead(loss, norm).tolist() == [True, True, True, False]


def test_a_path_tells_how_far_it_has_converged_and_whether_gradients_agree(digits, zoo):
    """FOSC near 0 and alignment near 1 of an honest model; of a backward pass of noise 1 and 0."""
    images, labels = digits.test.batch(torch.arange(40), "cpu")
    plain = PGD(norm="linf", epsilon=0.1, steps=20)
    honest, noise = (
        along_the_path(model, images, labels, torch.arange(40), plain, 0)
        for model in (zoo(0).honest["linear"], zoo(0).masked["backward noise"][0])
    )
    assert float(honest["fosc"].nanmedian()) < 0.5
    assert float(honest["alignment"].nanmedian()) > 0.9
    assert 0.8 < float(noise["fosc"].nanmedian()) < 1.2
    assert abs(float(noise["alignment"].nanmedian())) < 0.2


def test_the_audit_tells_convergence_and_alignment_in_words(digits, zoo):
    found = examine(
        zoo(0).honest["SL-adv"], digits.test.subset(torch.arange(60)), None, ThreatModel("linf", 0.1), "quick"
    )
    said = {made.id: made.row()["cause"] for made in found.checks}
    assert "; the median FOSC is 0." in said["C2"]
    assert ", the median alignment of image and random start 0." in said["G1"]
