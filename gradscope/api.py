"""Measure models in memory: each function does what the command of the same measurement does, with the same options.

Every function takes its options as keywords, returns a :class:`gradscope.measure.result.Result` and raises
:class:`gradscope.errors.GradscopeError`, a ``ValueError`` of one line that names the argument, for a mistake.
"""

import inspect
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

import pandas as pd
from torch import Tensor, nn

from gradscope.config import Config, Data
from gradscope.data import sources
from gradscope.data.given import as_image_set
from gradscope.data.image_set import ImageSet, Splits
from gradscope.data.names import DATASETS
from gradscope.distributed.processes import Hardware, resolve_device
from gradscope.errors import GradscopeError, unknown_name
from gradscope.measure.declaring import Circumstances, DataOptions, ForeignOptions, Options
from gradscope.measure.inputs import Given
from gradscope.measure.options import (
    AnalyzeOptions,
    AttackOptions,
    AuditOptions,
    LandscapeOptions,
    Request,
    TransferOptions,
)
from gradscope.measure.result import Attacks, AuditReport, Landscape, Result, Trace, TransferMatrix, read
from gradscope.measure.runner import run
from gradscope.models.checkpoint import Checkpoint
from gradscope.models.checkpoint import load as load_checkpoint
from gradscope.models.checkpoint import save as save_checkpoint
from gradscope.models.foreign import load_foreign
from gradscope.models.given import at_chance, device_of, given_model
from gradscope.models.references import check_references, parse_reference, weights_in_order
from gradscope.progress import shown
from gradscope.training.request import TrainingRequest
from gradscope.training.runs import configure_training, count_right, run_training

__all__ = ["attack", "audit", "landscape", "load", "read", "report", "trace", "train", "transfer"]

#: A model: a module, or the text of a checkpoint or foreign model as a command takes it.
Model = nn.Module | str | Path
#: One model, or several by name.
Models = Model | Mapping[str, Model]
Measure = TypeVar("Measure", bound=Callable[..., Result])

#: Keyword arguments beside a measurement's own options.
_AROUND = {**DataOptions.model_fields, **ForeignOptions.model_fields, "device": Circumstances.model_fields["device"]}
_PARAMETERS = """\
Parameters
----------
model
    A ``torch.nn.Module`` in evaluation mode that takes images in [0, 1] and returns logits ``(N, K)``, or an object
    with ``.logits``; or a checkpoint or foreign model as the command names it; or several of these by name, in a
    dictionary (files without a module among them keep their own names). Its weights, gradients, flags and random
    states stay as they are, and it is measured on its device.
x, y
    Images ``(N, C, H, W)``, float in [0, 1] (exactly these pixels are measured) or uint8, and labels ``(N,)`` of any
    integer type: tensors or arrays. In place of both a pair ``(x, y)``, a DataLoader, a data set of pairs or an
    ``ImageSet``. All of them are measured unless ``samples`` says how many; of a landscape ``images`` does. Where both
    are left out, the test images of ``dataset`` are read, or those of the data set that our model was trained on.
"""


def _declared(kind: type[Options]) -> Callable[[Measure], Measure]:
    """Give a function the keyword arguments that ``kind`` declares, in its signature and its docstring."""
    declared = {**kind.model_fields, **_AROUND}
    hints: dict[str, Any] = {}
    for options in (Circumstances, ForeignOptions, DataOptions, kind):
        hints |= get_type_hints(options)

    def decorate(function: Measure) -> Measure:
        @wraps(function)
        def measure(model: Models, x: Any = None, y: Any = None, **options: Any) -> Result:
            for name in options:
                if name not in declared and name != "progress":
                    raise unknown_name(f"{function.__name__}()", name, [*declared, "progress"])
            return function(model, x, y, **options)

        own = list(inspect.signature(function).parameters.values())[:3]
        keywords = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[name])
            for name, field in declared.items()
        ]
        progress = inspect.Parameter("progress", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=bool | None)
        signature = inspect.signature(function).replace(parameters=[*own, *keywords, progress])
        measure.__signature__ = signature  # type: ignore[attr-defined]  # what help() reads
        texts = {name: str(field.description) for name, field in declared.items()}
        measure.__doc__ = _document(function.__doc__ or "", texts)
        return cast(Measure, measure)

    return decorate


def _document(text: str, options: Mapping[str, str]) -> str:
    """The docstring with its parameters before what it says of the result; flags are called as in Python."""
    first, _, last = inspect.cleandoc(text).partition("\n\nReturns\n")
    flag = re.compile(r"--([a-z][a-z-]*)")
    options = {name: text.replace("comma-separated", "a list, or comma-separated") for name, text in options.items()}
    lines = [
        f"{name}\n    {flag.sub(lambda found: found[1].replace('-', '_'), text)}." for name, text in options.items()
    ]
    lines.append("progress\n    draw progress bars, or none; where it is left out, on a terminal.")
    return f"{first}\n\n{_PARAMETERS}{chr(10).join(lines)}\n\nReturns\n{last}\n"


@_declared(AnalyzeOptions)
def trace(model: Models, x: Any = None, y: Any = None, **options: Any) -> Trace:
    """Follow the gradients along attacks: cosine, norm, entropy and what else ``metrics`` names, step by step.

    Returns
    -------
    Trace
        ``.frame()`` has a row for each model, attack, step and metric, ``.frame("samples")`` one for each image,
        ``.mean("cosine")`` the means, ``.plot("cosine")`` the curve.

    Raises
    ------
    GradscopeError
        Where a model, the images or an option cannot be used; the message names the argument.

    Examples
    --------
    >>> import torch
    >>> import gradscope as gs
    >>> x = torch.tensor([0.9, 0.1] * 8 + [0.2, 0.8] * 8).reshape(16, 1, 1, 2)
    >>> y = x.flatten(1).argmax(dim=1)
    >>> gs.trace({"pixels": torch.nn.Flatten().eval()}, x, y, metrics="cosine", epsilon=0.2, steps=4)
    <Trace pixels: accuracy 100.0% clean, 100.0% under pgd, cosine 1>

    """
    return cast(Trace, _measure(AnalyzeOptions, model, x, y, options))


@_declared(LandscapeOptions)
def landscape(model: Models, x: Any = None, y: Any = None, **options: Any) -> Landscape:
    """Evaluate the loss on planes around images (``space="input"``) or around the weights (``space="weights"``).

    Returns
    -------
    Landscape
        ``.frame()`` has a row for each point, ``.frame("summary")`` radii, roughness, sharpness and curvature with
        their intervals, ``.plot()`` draws the planes.

    Raises
    ------
    GradscopeError
        Where a model, the images or an option cannot be used; the message names the argument.

    Examples
    --------
    >>> import torch
    >>> import gradscope as gs
    >>> x = torch.tensor([0.9, 0.1] * 8 + [0.2, 0.8] * 8).reshape(16, 1, 1, 2)
    >>> y = x.flatten(1).argmax(dim=1)
    >>> plane = gs.landscape({"pixels": torch.nn.Flatten().eval()}, x, y, images=2, points=5, epsilon=0.2, steps=4)
    >>> len(plane.frame()), plane.tables
    (50, ['samples', 'summary', 'landscape', 'path', 'bands'])

    """
    return cast(Landscape, _measure(LandscapeOptions, model, x, y, options))


@_declared(AttackOptions)
def attack(model: Models, x: Any = None, y: Any = None, **options: Any) -> Attacks:
    """Attack with many methods and find the lowest robust accuracy: right when clean and under every attack.

    Returns
    -------
    Attacks
        ``.robust_accuracy`` with its ``.interval``; ``.frame()`` has the accuracy under each attack; ``.adversarial``
        the images that fooled the model, with ``save_images=True``.

    Raises
    ------
    GradscopeError
        Where a model, the images or an option cannot be used; the message names the argument.

    Examples
    --------
    >>> import torch
    >>> import gradscope as gs
    >>> x = torch.tensor([0.9, 0.1] * 8 + [0.6, 0.4] * 8).reshape(16, 1, 1, 2)
    >>> y = torch.zeros(16, dtype=torch.int64)
    >>> found = gs.attack({"pixels": torch.nn.Flatten().eval()}, x, y, attacks="pgd", norm="linf", epsilon=0.2, steps=4)
    >>> found.robust_accuracy
    0.5

    """
    return cast(Attacks, _measure(AttackOptions, model, x, y, options))


@_declared(TransferOptions)
def transfer(model: Models, x: Any = None, y: Any = None, **options: Any) -> TransferMatrix:
    """Judge the adversarial examples made on each of several models, by name, on every other and on itself.

    Returns
    -------
    TransferMatrix
        ``.matrix`` has the accuracy by source and target, ``.frame()`` also its intervals.

    Raises
    ------
    GradscopeError
        Where a model, the images or an option cannot be used, or there is one model; the message names the argument.

    Examples
    --------
    >>> import torch
    >>> import gradscope as gs
    >>> x = torch.tensor([0.9, 0.1] * 8 + [0.6, 0.4] * 8).reshape(16, 1, 1, 2)
    >>> y = torch.zeros(16, dtype=torch.int64)
    >>> models = {"one": torch.nn.Flatten().eval(), "same": torch.nn.Flatten().eval()}
    >>> float(gs.transfer(models, x, y, norm="linf", epsilon=0.2, steps=4).matrix.loc["one", "same"])
    0.5

    """
    return cast(TransferMatrix, _measure(TransferOptions, model, x, y, options))


@_declared(AuditOptions)
def audit(model: Models, x: Any = None, y: Any = None, **options: Any) -> AuditReport:
    """Say whether a model's robustness is real or its gradients are masked: verdict, cause, upper bound, checks.

    Returns
    -------
    AuditReport
        ``.verdict``, ``.causes``, ``.upper_bound`` of the robust accuracy with its ``.interval``; ``.frame()`` has a
        row for each check; of several models ``.audits`` has all of it for each.

    Raises
    ------
    GradscopeError
        Where a model, the images or an option cannot be used; the message names the argument.

    Examples
    --------
    >>> import torch
    >>> import gradscope as gs
    >>> x = torch.tensor([0.9, 0.2] * 32 + [0.2, 0.7] * 32).reshape(64, 1, 1, 2)
    >>> y = x.flatten(1).argmax(dim=1)
    >>> report = gs.audit({"pixels": torch.nn.Flatten().eval()}, x, y, norm="linf", epsilon="128/255", budget="quick")
    >>> report.verdict, report.upper_bound
    ('none found within this budget', 0.0)

    """
    return cast(AuditReport, _measure(AuditOptions, model, x, y, options))


def _measure(kind: type[Options], model: Models, x: Any, y: Any, given: Mapping[str, Any]) -> Result:
    """Run a measurement as its command does, in a directory that is read back and removed."""
    values = dict(given)
    progress = values.pop("progress", None)
    models = _named(model)
    for name in DataOptions.model_fields:
        if x is not None and name in values:
            raise GradscopeError(f"{name} must be left out where x is given, got {values[name]!r}")
    named = models | _others(kind, values, models) if x is not None or _in_memory(models) else models
    request = Request(
        options=kind.parse(_of(kind, values)),
        models=tuple(models),
        data=DataOptions.parse(_of(DataOptions, values)),
        foreign=ForeignOptions.parse(_of(ForeignOptions, values)),
        where=Circumstances(device=str(values.get("device", "auto")), no_figures=True),
    )
    modules = _in_memory(named)
    if modules and "device" in values:
        raise GradscopeError("device must be left out where a model is in memory: call model.to(...)")
    with tempfile.TemporaryDirectory() as folder, shown(progress):
        out = Path(folder) / "results"
        if x is None and not modules:
            texts = tuple(str(text) for text in models.values())
            run(request.model_copy(update={"models": texts}), out)
        else:
            request.check()
            images = _test_images(request.data, modules) if x is None else as_image_set(x, y)
            run(request, out, _given(named, images, request, everything=x is not None))
        return read(out)


def _test_images(data: DataOptions, modules: Sequence[nn.Module]) -> ImageSet:
    """The test images of ``dataset``, or of the data set by name that one of our models was trained on."""
    given = data.given()
    if "dataset" not in given:
        trained = [model.checkpoint.config["data"] for model in modules if isinstance(model, TrainedModel)]
        known = [own for own in trained if own["dataset"] in DATASETS]
        if not known:
            raise GradscopeError("x must be given where a model is in memory, or `dataset`; got None")
        given = known[0] | given
    return sources.load(Data.parse(given), download=data.download).test


def _in_memory(models: Mapping[str, Model]) -> list[nn.Module]:
    return [model for model in models.values() if isinstance(model, nn.Module)]


def _named(model: Models) -> dict[str, Model]:
    """The models by name."""
    if isinstance(model, Mapping):
        if not model:
            raise GradscopeError("model must be one model or several by name, got none")
        named = {str(name): one for name, one in model.items()}
    elif isinstance(model, TrainedModel):
        named = {model.checkpoint.mode: model}
    elif isinstance(model, str | Path):
        named = {Path(model).stem if str(model).endswith(".pt") else str(model): model}
    else:
        named = {type(model).__name__: model}
    for one in named.values():
        if not isinstance(one, nn.Module | str | Path):
            raise GradscopeError(
                f"model must be a torch.nn.Module, a path, or several of these by name, got {type(one).__name__}"
            )
    return named


def _others(kind: type[Options], values: dict[str, Any], models: Mapping[str, Model]) -> dict[str, Model]:
    """Models in other roles by name, such as surrogates, whose names take their place in ``values``.

    A text may be the name of one of ``models``.
    """
    found: dict[str, Model] = {}
    for role in kind.roles:
        value = values.get(role)
        if value is None or role == "epochs":
            continue
        if isinstance(value, nn.Module):
            value = {role: value}
        elif not isinstance(value, Mapping):
            value = {str(text): text for text in ([value] if isinstance(value, str | Path) else value)}
        found |= {str(name): one for name, one in value.items() if name not in models}
        values[role] = tuple(map(str, value))
    return found


def _given(models: Mapping[str, Model], images: ImageSet, request: Request, *, everything: bool) -> Given:
    """Every model made ready, one that is named loaded first; a model at chance is warned of."""
    foreign, ready = request.foreign, {}
    modules = _in_memory(models)
    device = device_of(modules[0]) if modules else resolve_device(request.where.device)
    loaded = _loaded([str(model) for model in models.values() if not isinstance(model, nn.Module)], images, foreign)
    for name, model in models.items():
        here = isinstance(model, nn.Module)
        module = model if isinstance(model, nn.Module) else next(loaded).to(device)
        normalisation = {"mean": foreign.mean, "std": foreign.std} if here else {}
        ours = module.checkpoint if isinstance(module, TrainedModel) else None
        if ours is not None and (foreign.mean is not None or foreign.std is not None):
            raise GradscopeError(f"mean must be left out, and `std`, for {name}: gradscope trained it, it has its own")
        network = module.network if isinstance(module, TrainedModel) else module
        subject, images = given_model(network, images, **normalisation, label=name)
        if ours is not None:
            spec, seed = ours.spec, ours.config.get("seed")
            subject = replace(subject, mode=ours.mode, architecture=spec.architecture, seed=seed)
        ready[name] = subject
    for name, subject in ready.items():
        right = count_right(subject.model, images, device)
        if warning := at_chance(right, len(images), len(images.classes)):
            warnings.warn(f"{name}: {warning}", stacklevel=5)
    return Given(ready, images, everything)


def _loaded(texts: Sequence[str], images: ImageSet, foreign: ForeignOptions) -> Iterator[nn.Module]:
    """The models that are named, one after the other."""
    references = check_references(texts, weights=foreign.weights, trust_code=foreign.trust_code)
    for reference, weights in zip(references, weights_in_order(references, foreign.weights), strict=True):
        yield load(
            reference.text,
            weights=weights,
            mean=foreign.mean if reference.is_foreign else None,
            std=foreign.std if reference.is_foreign else None,
            channels=images.channels,
            size=(images.height, images.width),
            trust_code=foreign.trust_code,
        )


def _of(kind: type[Config], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in kind.model_fields}


def load(
    model: str | Path,
    *,
    weights: str | Path | None = None,
    mean: Any = None,
    std: Any = None,
    classes: int = 1000,
    channels: int = 3,
    size: tuple[int, int] = (224, 224),
    trust_code: bool = False,
) -> nn.Module:
    """Load a model that takes images in [0, 1], in evaluation mode, on the CPU.

    Parameters
    ----------
    model
        One of our checkpoints, which knows everything else itself, or a foreign model: ``torchvision:resnet18``,
        ``timm:resnet18``, ``package.module:factory`` or ``"package.module:factory(name='x', size=3)"``.
    weights
        The file of a foreign model's weights, ``.pt``, ``.pth`` or ``.safetensors``; no code from it is run.
    mean, std
        Normalisation of a foreign model, one number for each channel, put in front of it.
    classes, channels, size
        What a foreign model is built for; ``size`` is height and width.
    trust_code
        Whether a factory may be called, which runs its code.

    Returns
    -------
    torch.nn.Module
        A :class:`TrainedModel` where it is one of our checkpoints.

    Raises
    ------
    GradscopeError
        Where there is no such model, or its weights do not fit.

    """
    reference = parse_reference(str(model), "model")
    if not reference.is_foreign:
        return TrainedModel(load_checkpoint(Path(model), trust_code=trust_code))
    return load_foreign(
        reference,
        weights=None if weights is None else Path(weights),
        classes=classes,
        channels=channels,
        size=size,
        mean=mean,
        std=std,
        trust_code=trust_code,
    )


class TrainedModel(nn.Module):
    """One of our models, in evaluation mode: images ``(N, C, H, W)`` in [0, 1] -> logits ``(N, K)``."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.network = checkpoint.build()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.network(images)
        return logits

    @property
    def history(self) -> pd.DataFrame:
        """One row an epoch, as ``history.csv`` has it."""
        return pd.DataFrame(self.checkpoint.history)

    def save(self, path: str | Path) -> Path:
        """Write the checkpoint, which every command and :func:`load` read."""
        save_checkpoint(Path(path), self.checkpoint)
        return Path(path)


def train(
    mode: str,
    data: Any = "digits",
    *,
    test: Any = None,
    data_root: str | Path | None = None,
    epochs: int | None = None,
    architecture: str | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    precision: str | None = None,
    train_samples: int | None = None,
    trust_code: bool = False,
    paper: bool = False,
    phases: Sequence[Mapping[str, Any]] | None = None,
    device: str = "auto",
    out: str | Path | None = None,
    progress: bool | None = None,
) -> TrainedModel:
    """Train a classifier by supervised learning (``sl``), policy gradient (``rl``), adversarially, or in phases.

    Parameters
    ----------
    mode
        ``sl``, ``rl``, ``sl-adv``, ``rl-adv``, ``sl-rl``, ``rl-sl``, or any label where ``phases`` are given.
    data
        The name of a data set (``gradscope list datasets``), or images and labels in memory as for
        :func:`gradscope.trace`. A tenth of them is held out, to choose the best epoch.
    data_root
        Where the files of a named data set are.
    test
        Images and labels alike, on which the finished model is judged; those of ``data`` where left out.
    epochs, batch_size, seed, precision, paper
        As in ``gradscope train``; sized for the data where left out.
    architecture
        A name (``gradscope list architectures``), or your own ``package.module:factory(...)``, whose code runs with
        ``trust_code`` alone.
    train_samples
        How many of the training images are used, every class in its share; all where left out.
    phases
        Tables of settings, as the ``[[phases]]`` of a configuration file.
    trust_code
        Run the code of your own architecture.
    device
        ``auto``, ``cpu`` or ``cuda``.
    out
        A file for the checkpoint, which must not be there yet.
    progress
        Draw progress bars, or none; where it is left out, on a terminal.

    Returns
    -------
    TrainedModel
        A module in evaluation mode with ``.history`` (a row an epoch), ``.checkpoint`` and ``.save(path)``.

    Raises
    ------
    GradscopeError
        Where the data or an option cannot be used.

    Examples
    --------
    >>> import gradscope as gs
    >>> model = gs.train("sl", "digits", epochs=1, progress=False)
    >>> model.checkpoint.mode, len(model.history)
    ('sl', 1)

    """
    given = {
        "architecture": architecture,
        "batch_size": batch_size,
        "seed": seed,
        "precision": precision,
        "train_samples": train_samples,
    }
    options = {key: value for key, value in given.items() if value is not None}
    table = {} if phases is None else {"phases": [dict(phase) for phase in phases]}
    request = TrainingRequest(
        mode=mode, paper=paper, table=table, epochs=epochs, options=options, trust_code=trust_code
    )
    if isinstance(data, str):
        source = {"dataset": data} | ({} if data_root is None else {"data_root": data_root})
        training, splits = configure_training(replace(request, data=source))
    else:
        images = as_image_set(data)
        splits = Splits(images, images if test is None else as_image_set(test, classes=images.classes))
        training = request.resolved(Data(dataset=images.name), images.height)
    with tempfile.TemporaryDirectory() as folder, shown(progress):
        path = Path(folder) / "model.pt" if out is None else Path(out)
        found = run_training(
            training, splits, path, Hardware(device), resume=False, overwrite=out is None, trust_code=trust_code
        )
    return TrainedModel(found.checkpoint)


def report(directory: str | Path) -> Path:
    """Write one self-contained ``report.html`` for a directory of results, and return its path.

    Raises :class:`GradscopeError` where ``directory`` holds no results or a file of them is damaged.
    """
    from gradscope.reporting.page import write_report

    if isinstance(directory, Result):
        raise GradscopeError("directory must be a path, got a result; save it first: gs.report(result.save(PATH))")
    return write_report(Path(directory))
