"""Models are looked at without a trace, and told apart by whether they fit."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from gradscope.data.image_set import ImageSet
from gradscope.errors import GradscopeError
from gradscope.models.inspection import check_differentiable, check_fits, device_of, evaluating, measuring, one_line

CPU = torch.device("cpu")


def mixed() -> nn.Sequential:
    """Flags that neither train() nor eval() would give back."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(72, 3))
    model[1].eval()
    model[0].bias.requires_grad_(False)
    model[4].weight.grad = torch.ones_like(model[4].weight)
    return model


def like(side: int, classes: int) -> ImageSet:
    """A grey image of that size, and that many classes."""
    image = torch.zeros(1, 1, side, side)
    return ImageSet.from_tensors("grey", image, torch.zeros(1).long(), [str(name) for name in range(classes)])


def flags(model: nn.Module) -> tuple[list[bool], list[bool]]:
    return [module.training for module in model.modules()], [each.requires_grad for each in model.parameters()]


def test_evaluating_freezes_inside_and_restores_mixed_flags() -> None:
    model = mixed()
    before = flags(model)
    gradient = model[4].weight.grad
    images = torch.rand(2, 1, 8, 8, requires_grad=True)
    with evaluating(model):
        assert flags(model) == ([False] * 6, [False] * 6)
        assert torch.equal(model(images), model(images))
        torch.autograd.grad(model(images).sum(), images)
    assert flags(model) == before
    assert before[0] == [True, True, False, True, True, True]
    assert before[1] == [True, False, True, True, True, True]
    assert model[4].weight.grad is gradient
    assert gradient.unique().tolist() == [1.0]
    assert model[0].weight.grad is None


def test_evaluating_restores_after_an_exception() -> None:
    model = mixed()
    before = flags(model)
    with pytest.raises(ZeroDivisionError), evaluating(model):
        raise ZeroDivisionError
    assert flags(model) == before


def test_evaluating_restores_when_a_models_own_eval_fails() -> None:
    class Stubborn(nn.Linear):
        def train(self, mode: bool = True) -> "Stubborn":
            raise RuntimeError("never")

    model = nn.Sequential(nn.Dropout(), Stubborn(2, 2))
    before = flags(model)
    with pytest.raises(RuntimeError, match="never"), evaluating(model):
        pass
    assert flags(model) == before


class Restless(nn.Module):
    """Draws noise and counts its calls, in place and by assignment, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, momentum=0.5)
        self.linear = nn.Linear(64, 5)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.norm.train()
        self.calls += 1
        self.seen = self.seen + len(images)
        noise = torch.randn_like(images)
        return self.linear((self.norm(images) + noise).flatten(1))


def test_check_fits_leaves_no_trace() -> None:
    model = Restless()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before = flags(model)
    seen = model.seen
    random = torch.get_rng_state()
    check_fits(model, like(8, 5), name="restless", device=CPU)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.seen is seen
    assert flags(model) == before
    model(torch.rand(2, 1, 8, 8))
    assert model.calls == 1
    assert not torch.equal(model.norm.running_mean, state["norm.running_mean"])


class Returns(nn.Module):
    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, images: Tensor) -> object:
        return self.output


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "model: mine must have the data's 5 classes, got 10"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(32, 5)),
            "model: mine must take the data's 1 x 8 x 8 images: Runtime",
        ),
        (nn.Conv2d(3, 5, 3), "model: mine must take the data's 1 x 8 x 8 images: RuntimeError: Given groups=1"),
        (nn.Conv2d(1, 5, 3), "model: mine must return logits (N, classes), got a tensor (2, 5, 6, 6) for 2 images"),
        (Returns(torch.zeros(1, 5)), "model: mine must return logits (N, classes), got a tensor (1, 5) for 2 images"),
        (Returns((torch.zeros(2, 5),)), "model: mine must return logits (N, classes), got a tuple for 2 images"),
        (Returns(torch.tensor([[0.0] * 5, [0.0] * 4 + [torch.nan]])), "model: mine must return finite logits"),
        (Returns(torch.full((2, 5), -torch.inf)), "model: mine must return finite logits"),
    ],
)
def test_what_does_not_fit(model: nn.Module, message: str) -> None:
    before = flags(model)
    with pytest.raises(GradscopeError) as raised:
        check_fits(model, like(8, 5), name="model: mine", device=CPU)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    assert flags(model) == before


def test_one_line() -> None:
    assert one_line(ValueError("first\nsecond")) == "ValueError: first"
    assert one_line(ValueError()) == "ValueError"


class Cut(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.detach().flatten(1)[:, :3] * nn.Parameter(torch.ones(3)).detach()


def test_logits_that_autograd_cannot_follow_are_refused() -> None:
    cpu = torch.device("cpu")
    with pytest.raises(GradscopeError, match="model: cut must have a gradient in the image"):
        check_differentiable(Cut(), like(4, 3), name="model: cut", device=cpu)
    quantised = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Threshold(1e9, 0.0))
    check_differentiable(quantised, like(4, 3), name="zero gradient", device=cpu)


def test_integer_logits_are_refused() -> None:
    class Rounded(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :3].long()

    with pytest.raises(GradscopeError, match=r"floating-point logits, got torch\.int64"):
        check_fits(Rounded(), like(4, 3), name="model: m", device=torch.device("cpu"))


def arithmetic() -> dict[str, object]:
    """Everything that decides how float32 is computed; "refused" where torch finds its two sets of flags at odds."""

    def read(flag: Callable[[], object]) -> object:
        try:
            return flag()
        except RuntimeError:
            return "refused"

    backends = torch.backends
    return {
        "cudnn.allow_tf32": read(lambda: backends.cudnn.allow_tf32),
        "matmul.allow_tf32": read(lambda: backends.cuda.matmul.allow_tf32),
        "matmul": read(torch.get_float32_matmul_precision),
        "new": [
            (getattr(backend, operation).fp32_precision)
            for backend, operations in ((backends.cudnn, ("conv", "rnn")), (backends.mkldnn, ("conv", "matmul")))
            for operation in operations
        ],
        "cuda": backends.cuda.matmul.fp32_precision,
        "benchmark": backends.cudnn.benchmark,
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
    }


STRICT = {
    "cudnn.allow_tf32": False,
    "matmul.allow_tf32": False,
    "matmul": "highest",
    "new": ["ieee"] * 4,
    "cuda": "ieee",
    "benchmark": False,
    "autocast": (False, False),
}

#: What a caller may have chosen before measuring, in torch's old and new words.
CALLERS = {
    "nothing": "pass",
    "old, medium": "torch.set_float32_matmul_precision('medium')",
    "old, matmul": "torch.backends.cuda.matmul.allow_tf32 = True",
    "old, strict": "torch.backends.cudnn.allow_tf32 = False",
    "new, matmul": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "new, everything": "torch.backends.fp32_precision = 'tf32'",
    "new, CPU": "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "benchmark": "torch.backends.cudnn.benchmark = True",
}


@pytest.fixture
def untouched_flags() -> Iterator[None]:
    yield
    backends = torch.backends
    backends.fp32_precision = "none"
    backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")
    for operation in (backends.cudnn.conv, backends.cudnn.rnn):
        operation.fp32_precision = "tf32"
    for operation in (backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.rnn, backends.mkldnn.matmul):
        operation.fp32_precision = "none"
    backends.cudnn.benchmark = False


@pytest.mark.usefixtures("untouched_flags")
@pytest.mark.parametrize("choice", CALLERS.values(), ids=CALLERS)
def test_measuring_is_ieee_float32_and_restores_the_callers_choice(choice: str) -> None:
    exec(choice)
    before = arithmetic()
    with torch.autocast("cpu"), measuring(mixed()):
        assert arithmetic() == STRICT
        with measuring(mixed()):
            pass
        assert arithmetic() == STRICT
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == torch.float32
    assert arithmetic() == before
    with pytest.raises(ZeroDivisionError), measuring(mixed()):
        raise ZeroDivisionError
    assert arithmetic() == before


def test_the_device_is_the_models() -> None:
    assert device_of(nn.Linear(1, 1, device="meta")) == torch.device("meta")
    assert device_of(nn.BatchNorm2d(3, affine=False, device="meta")) == torch.device("meta")
    assert device_of(nn.Flatten()) == torch.device("cpu")


class Odd(nn.Module):
    """Linear logits, but for what ``spoil`` does to images and logits."""

    def __init__(self, spoil: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.spoil, self.last = spoil, nn.Linear(64, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.spoil(images, self.last(images.flatten(1)))


def leave(images: Tensor, logits: Tensor) -> Tensor:
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            lambda images, logits: logits.squeeze(),
            r"odd must return logits \(N, classes\), got a tensor \(5,\) for 1 im",
        ),
        (lambda images, logits: logits + 0 * images.mul_(2).mean(), "odd must not change its input in place"),
        (leave, "odd must take the data's 1 x 8 x 8 images: SystemExit: 0"),
    ],
    ids=["squeezed", "in place", "exit"],
)
def test_what_would_fail_later_is_refused(spoil: Callable[[Tensor, Tensor], Tensor], told: str) -> None:
    with pytest.raises(GradscopeError, match=told):
        check_fits(Odd(spoil), like(8, 5), name="odd", device=CPU)
