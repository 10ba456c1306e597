import math

import pytest
import torch
from torch import nn

from gradscope.attacks.dispatch import turns
from gradscope.attacks.evaluation import evaluate
from gradscope.attacks.registry import ATTACKS, OWN
from gradscope.attacks.threat import ThreatModel
from gradscope.config import Budget
from gradscope.data.image_set import ImageSet
from gradscope.distributed.units import Work
from gradscope.errors import GradscopeError

NAMES = [name for name in ATTACKS if name != OWN]  # which needs a loss
TINY = Budget(steps=4, queries=20, noise_points=4, restarts=2, smoothing=2, targets=2)


def agreed(model, image_set):
    """The images with the labels that the model gives them, but for every fifth."""
    images, _ = image_set.batch(torch.arange(len(image_set)), "cpu")
    with torch.no_grad():
        labels = model.eval()(images).argmax(dim=1)
    labels[::5] = (labels[::5] + 1) % len(image_set.classes)
    return ImageSet.from_tensors("agreed", image_set.images, labels, image_set.classes)


def some_examples(image_set, factor=1.0):
    images, _ = image_set.batch(torch.arange(len(image_set)), "cpu")
    return [(images + 0.1 * factor * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_results_do_not_depend_on_the_batch_size(convolutional, image_set, norm):
    image_set = agreed(convolutional, image_set.subset(torch.arange(20)))
    threat = ThreatModel(norm, 0.02 if norm == "linf" else 0.3)
    outcomes = [
        evaluate(
            convolutional,
            image_set,
            NAMES,
            threat,
            TINY,
            examples=some_examples(image_set),
            cascade=False,
            keep_images=True,
            work=Work(batch_size=batch_size),
        )
        for batch_size in (1, 7, 64)
    ]
    for name in NAMES:
        first, *others = (outcome.attacks[name] for outcome in outcomes)
        for other in others:
            assert torch.equal(first.fooled, other.fooled), name
            assert (first.forward, first.backward) == (other.forward, other.backward), name
            difference = (first.adversarial - other.adversarial).flatten(1).abs().amax(dim=1)
            assert (difference < 1e-4).float().mean() > 0.9, (
                name
            )  # where a slope is 0 to rounding, its sign is anything


def test_a_cascade_attacks_what_stands(convolutional, image_set):
    image_set = agreed(convolutional, image_set)
    names = ["fgsm", "square", "pgd", "apgd-t"]
    threat = ThreatModel("linf", 0.02)
    cascade = evaluate(convolutional, image_set, names, threat, TINY)
    whole = evaluate(convolutional, image_set, names, threat, TINY, cascade=False)
    assert cascade.right.sum() == 32
    stands = cascade.right.clone()
    for name in names:
        assert torch.equal(cascade.attacks[name].attacked, stands.nonzero().squeeze(1))
        assert torch.equal(whole.attacks[name].attacked, cascade.right.nonzero().squeeze(1))
        assert torch.equal(cascade.fooled_by(name), whole.fooled_by(name) & stands)
        stands &= ~cascade.fooled_by(name)
    assert torch.equal(cascade.standing(), whole.standing())
    assert cascade.felled_by() == whole.felled_by()
    assert 0 < cascade.robust_accuracy < 0.8


@pytest.mark.parametrize("name", ["apgd-t", "fab-t", "pgd-restarts", "autoattack", "transfer"])
def test_what_a_turn_leaves_goes_on_in_full_batches(convolutional, image_set, name):
    """The images that were right in one batch share one with those of others, and have the results they had alone."""
    image_set = agreed(convolutional, image_set)
    examples = [example for factor in (0.5, 1) for example in some_examples(image_set, factor)]
    seen: dict[str, list[int]] = {}

    def each(units):
        for label, make in units:
            values = make()
            title = label.rsplit("-", 2)[0]
            seen.setdefault(title, []).append(len(values.get("fooled", values.get("right"))))
            yield values

    threat = ThreatModel("linf", 0.015)
    budget = TINY.model_copy(update={"targets": 4})
    given = (convolutional, image_set, [name], threat, budget)
    outcome = evaluate(*given, examples=examples, work=Work(batch_size=8, each=each), keep_images=True)
    del seen["clean"]
    expected = list(turns(ATTACKS[name], budget, 5, len(examples), 8))
    assert list(seen) == [f"{name}-{number}-of-{len(expected)}" for number in range(1, len(expected) + 1)]
    for turn, sizes in zip(expected, seen.values(), strict=True):
        assert set(sizes[:-1]) <= {8 // turn.copies}
    left = [sum(sizes) for sizes in seen.values()]
    assert left[0] == 32 > left[-1] > 0
    whole = evaluate(*given, examples=examples, keep_images=True).attacks[name]
    attack = outcome.attacks[name]
    assert torch.equal(attack.fooled, whole.fooled)
    assert 0 < attack.fooled.sum() < 32
    assert (attack.forward, attack.backward) == (whole.forward, whole.backward)


def test_autoattack_is_the_cascade_of_its_parts(convolutional, image_set):
    image_set = agreed(convolutional, image_set)
    threat = ThreatModel("linf", 0.015)
    parts = evaluate(convolutional, image_set, ["apgd-ce", "apgd-t", "fab-t"], threat, TINY)
    whole = evaluate(convolutional, image_set, ["autoattack"], threat, TINY)
    fallen = parts.right & ~parts.standing()
    assert 0 < fallen.sum() < 32
    assert whole.fooled_by("autoattack")[fallen].all()
    torch.testing.assert_close(whole.distance[fallen], parts.distance[fallen])
    assert whole.attacks["autoattack"].forward > sum(attack.forward for attack in parts.attacks.values())


def test_the_order_of_the_images_is_nothing(convolutional, image_set):
    """The numbers name the streams: a subset has the results that the whole has."""
    image_set = agreed(convolutional, image_set)
    names = ["pgd", "apgd-ce", "square", "noise", "pgd-smooth"]
    threat = ThreatModel("l2", 0.3)
    whole = evaluate(convolutional, image_set, names, threat, TINY, cascade=False)
    some = torch.tensor([30, 3, 17, 8, 1])
    part = evaluate(convolutional, image_set.subset(some), names, threat, TINY, cascade=False, numbers=some)
    other = evaluate(convolutional, image_set, names, threat, TINY, cascade=False, work=Work(seed=1))
    for name in names:
        assert torch.equal(part.fooled_by(name), whole.fooled_by(name)[some])
        assert not torch.equal(other.attacks[name].distance, whole.attacks[name].distance)


@pytest.mark.parametrize("name", NAMES)
def test_no_trace_is_left(convolutional, image_set, digest, name):
    convolutional[0].weight.requires_grad_(False)
    convolutional[0].bias.grad = torch.ones(8)
    convolutional[1].eval()
    examples = some_examples(image_set)
    kept = [example.clone() for example in examples]
    pixels = image_set.images.clone()
    before = digest(convolutional)
    evaluate(convolutional, image_set, [name], ThreatModel("linf", 0.02), TINY, examples=examples)
    assert digest(convolutional) == before
    assert torch.equal(image_set.images, pixels)
    assert torch.equal(examples[0], kept[0])


class Kept:
    """Units kept in memory; makes at most ``limit``, then breaks off."""

    def __init__(self, limit=math.inf):
        self.units, self.made, self.limit = {}, 0, limit

    def get(self, name, make):
        if name not in self.units:
            if self.made == self.limit:
                raise KeyboardInterrupt
            self.units[name] = make()
            self.made += 1
        return self.units[name]


def test_an_interrupted_battery_goes_on_where_it_stopped(convolutional, image_set):
    image_set = agreed(convolutional, image_set)
    names = ["fgsm", "pgd", "square", "fab-t"]
    threat = ThreatModel("linf", 0.02)

    def run(get):
        def each(units):
            return (get(name, make) for name, make in units)

        return evaluate(
            convolutional, image_set, names, threat, TINY, keep_images=True, work=Work(batch_size=8, each=each)
        )

    straight = Kept()
    expected = run(straight.get)
    broken = Kept(limit=8)
    with pytest.raises(KeyboardInterrupt):
        run(broken.get)
    broken.limit = math.inf
    resumed = run(broken.get)
    assert broken.made == straight.made == len(straight.units) > 8
    assert set(broken.units) == set(straight.units)
    for name in names:
        one, other = expected.attacks[name], resumed.attacks[name]
        assert torch.equal(one.attacked, other.attacked)
        assert torch.equal(one.fooled, other.fooled)
        assert torch.equal(one.adversarial, other.adversarial)
        assert (one.forward, one.backward) == (other.forward, other.backward)
    assert run(broken.get).felled_by() == expected.felled_by()
    assert broken.made == straight.made
    for unit in broken.units.values():
        assert all(isinstance(value, torch.Tensor) and value.device.type == "cpu" for value in unit.values())


def test_progress_adds_up(convolutional, image_set):
    seen = []
    names = ["fgsm", "pgd-from", "pgd"]
    evaluate(
        convolutional,
        agreed(convolutional, image_set),
        names,
        ThreatModel("linf", 0.02),
        TINY,
        work=Work(batch_size=8, advance=lambda images, note: seen.append((note, images))),
    )
    assert {note for note, _ in seen} == set(names)
    for name in names:
        assert sum(images for note, images in seen if note == name) == 40


class Detached(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images.detach())


class Refuses(Detached):
    """Has a gradient, but its backward pass raises."""

    def forward(self, images):
        logits = self.model(images)
        if logits.requires_grad:
            logits.register_hook(self._refuse)
        return logits

    def _refuse(self, gradient):
        raise RuntimeError("no way back")


@pytest.mark.parametrize(("wrapper", "reason"), [(Detached, "cut off from the image"), (Refuses, "no way back")])
def test_without_a_gradient_queries_go_on(convolutional, image_set, wrapper, reason):
    image_set = agreed(convolutional, image_set)
    examples = some_examples(image_set)
    threat = ThreatModel("linf", 0.05)
    outcome = evaluate(wrapper(convolutional), image_set, NAMES, threat, TINY, examples=examples)
    assert list(outcome.attacks) == ["square", "noise", "rays", "hop-skip-jump", "transfer"]
    assert outcome.fooled_by("square").any()
    for name in outcome.skipped:
        assert outcome.skipped[name].startswith("needs a gradient, the model has none")
        assert reason in outcome.skipped[name]


class SinglePrecision(Detached):
    """Works in float32 alone."""

    def forward(self, images):
        return self.model(images) + images.flatten(1)[:, :1] @ torch.zeros(1, 5)


def test_float64_is_skipped_where_the_model_knows_only_float32(convolutional, image_set):
    names = ["pgd", "pgd-float64"]
    model = SinglePrecision(convolutional)
    outcome = evaluate(model, agreed(convolutional, image_set), names, ThreatModel("linf", 0.05), TINY)
    assert list(outcome.attacks) == ["pgd"]
    assert outcome.skipped["pgd-float64"].startswith("needs a model that runs in float64: RuntimeError")


def test_few_classes_and_missing_examples_are_named(boundary):
    case = boundary("linf", 2)
    outcome = evaluate(case.model, case.image_set, NAMES, ThreatModel("linf", 0.001), TINY)
    assert outcome.skipped == {
        "pgd-dlr": "needs at least 3 classes, the model has 2",
        "apgd-dlr": "needs at least 3 classes, the model has 2",
        "pgd-from": "needs adversarial examples made on another model",
        "transfer": "needs adversarial examples made on another model",
    }


class Holes(Detached):
    """No logits where the first pixel is below 0.1, and where it is above 0.9 none are finite."""

    def forward(self, images):
        logits = self.model(images)
        first = images.flatten(1)[:, :1]
        return torch.where(first < 0.1, torch.nan, torch.where(first > 0.9, torch.inf, logits))


def test_images_without_finite_logits_are_undefined_and_not_right(convolutional, image_set):
    image_set = agreed(convolutional, image_set)
    images, _ = image_set.batch(torch.arange(40), "cpu")
    first = images.flatten(1)[:, 0]
    names = ["fgsm", "pgd", "apgd-ce", "apgd-t", "fab", "fab-t", "square", "noise", "rays", "hop-skip-jump"]
    threat = ThreatModel("linf", 0.05)
    outcome = evaluate(Holes(convolutional), image_set, names, threat, TINY, cascade=False, keep_images=True)
    assert torch.equal(outcome.undefined, (first < 0.1) | (first > 0.9))
    assert outcome.undefined.any()
    assert not (outcome.right & outcome.undefined).any()
    for name in names:
        assert not outcome.undefined[outcome.attacks[name].attacked].any()
        assert outcome.attacks[name].adversarial.isfinite().all()


def test_a_point_without_finite_logits_fools(image_set):
    """Everything within reach of the hole falls into it: there is nothing else to find."""

    class Hole(nn.Module):
        def forward(self, images):
            first = images.flatten(1)[:, :1]
            return torch.where(first > 0.6, torch.nan, torch.cat([1 + 0 * first, first - 5], dim=1))

    image_set = ImageSet.from_tensors(
        "hole", torch.full((4, 1, 4, 4), 140, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), ["0", "1"]
    )
    names = ["fgsm", "pgd", "pgd-margin", "square", "noise", "rays", "hop-skip-jump"]
    budget = Budget(steps=4, noise_points=60, queries=300)
    near = evaluate(Hole(), image_set, names, ThreatModel("linf", 0.1), budget, cascade=False)
    far = evaluate(Hole(), image_set, names, ThreatModel("linf", 0.04), budget, cascade=False)
    for name in names:
        assert near.fooled_by(name).all(), name
        assert not far.fooled_by(name).any(), name


class Noisy(nn.Module):
    """Draws from torch's global state."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images + 0.05 * torch.randn_like(images))


def test_a_random_model_gives_the_same_result_twice(convolutional, image_set):
    image_set = agreed(convolutional, image_set)
    names = ["pgd", "pgd-smooth", "apgd-ce", "fab-t", "square", "noise"]
    threat = ThreatModel("linf", 0.02)
    first, second = (
        evaluate(Noisy(convolutional), image_set, names, threat, TINY, cascade=False, keep_images=True)
        for _ in range(2)
    )
    for name in names:
        assert torch.equal(first.attacks[name].adversarial, second.attacks[name].adversarial)
        assert torch.equal(first.fooled_by(name), second.fooled_by(name))


def test_mistakes_are_named(convolutional, image_set):
    threat = ThreatModel("linf", 0.02)
    with pytest.raises(GradscopeError, match="attacks: 'pgd-margins' is unknown; did you mean 'pgd-margin'"):
        evaluate(convolutional, image_set, ["pgd-margins"], threat, TINY)
    with pytest.raises(GradscopeError, match=r"examples must have the shape of the images, \(40, 3, 8, 8\), got \(3,"):
        evaluate(convolutional, image_set, ["transfer"], threat, TINY, examples=[torch.zeros(3, 3, 8, 8)])


def test_images_that_are_all_wrong_are_no_work(convolutional, image_set):
    images, _ = image_set.batch(torch.arange(40), "cpu")
    labels = (convolutional.eval()(images).argmax(dim=1) + 1) % 5
    wrong = ImageSet.from_tensors("wrong", image_set.images, labels, image_set.classes)
    outcome = evaluate(convolutional, wrong, ["pgd", "square"], ThreatModel("linf", 0.02), TINY, keep_images=True)
    assert outcome.robust_accuracy == 0
    assert len(outcome.attacks["pgd"].attacked) == 0
    assert outcome.felled_by() == [None] * 40
    rows = list(outcome.attack_rows({}))
    assert math.isnan(next(row for row in rows if row["subset"] == "attacked")["value"])
