"""Measure models in memory: each function does what the command of the same measurement does, with the same options.

Every function takes its options as keywords, returns a :class:`gradscope.measure.result.Result` and raises
:class:`gradscope.errors.GradscopeError`, a ``ValueError`` of one line that names the argument, for a mistake.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from gradscope.api.in_memory import Models, measure
from gradscope.api.keywords import Function, declared
from gradscope.errors import GradscopeError
from gradscope.measure.options import (
    AnalyzeOptions,
    AttackOptions,
    AuditOptions,
    LandscapeOptions,
    SpectrumOptions,
    TransferOptions,
)
from gradscope.measure.options.common import ForeignOptions, Options
from gradscope.measure.options.judge import JudgeOptions
from gradscope.measure.result import (
    Attacks,
    AuditReport,
    JudgeReport,
    Landscape,
    Result,
    Spectrum,
    Trace,
    TransferMatrix,
)
from gradscope.options import DataOptions, DeviceOptions
from gradscope.validation import given_path

#: What the functions that measure say of a model and its images.
MEASURED = """\
model
    A ``torch.nn.Module`` in evaluation mode that takes images in [0, 1] and returns logits ``(N, K)``, or an object
    with ``.logits``; or a checkpoint or foreign model as the command names it; or several of these by name, in a
    dictionary (files without a module among them keep their own names). Its weights, gradients, flags and random
    states stay as they are, and it is measured on its device.
x, y
    Images ``(N, C, H, W)``, float in [0, 1] (exactly these pixels are measured) or uint8, and labels ``(N,)`` of any
    integer type: tensors or arrays. In place of both a pair ``(x, y)``, a DataLoader, a data set of pairs or an
    ``ImageSet``, whose name the results carry: ``ImageSet.from_tensors("faces", x, y)``. All of them are measured
    unless ``samples`` says how many; of landscapes and spectra ``images`` does. Where both are left out, the test
    images of ``dataset`` are read, or those of the data set that our model was trained on.
"""


def _measures(kind: type[Options]) -> Callable[[Function], Function]:
    return declared(MEASURED, kind, DataOptions, ForeignOptions, DeviceOptions)


@_measures(AnalyzeOptions)
def trace(model: Models, x: Any = None, y: Any = None, **options: Any) -> Trace:
    """Measure gradients step by step along attacks: cosine, norm, entropy and the other ``metrics``.

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
    >>> x = torch.tensor([0.9, 0.2] * 8 + [0.2, 0.7] * 8).reshape(16, 1, 1, 2)
    >>> y = x.flatten(1).argmax(dim=1)
    >>> gs.trace({"pixels": torch.nn.Flatten().eval()}, x, y, metrics="cosine", epsilon=0.2, steps=4)
    <Trace pixels: accuracy 100.0% clean, 100.0% under pgd, cosine 1>

    """
    return cast(Trace, measure(AnalyzeOptions, model, x, y, options))


@_measures(LandscapeOptions)
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
    >>> x = torch.tensor([0.9, 0.2] * 8 + [0.2, 0.7] * 8).reshape(16, 1, 1, 2)
    >>> y = x.flatten(1).argmax(dim=1)
    >>> plane = gs.landscape({"pixels": torch.nn.Flatten().eval()}, x, y, images=2, points=5, epsilon=0.2, steps=4)
    >>> len(plane.frame()), plane.tables
    (50, ['samples', 'summary', 'landscape', 'path', 'bands'])

    """
    return cast(Landscape, measure(LandscapeOptions, model, x, y, options))


@_measures(SpectrumOptions)
def spectrum(model: Models, x: Any = None, y: Any = None, **options: Any) -> Spectrum:
    """Measure the spectrum of the Hessian of the loss, in the weights or in each image (``space="input"``).

    The matrix H is the Hessian of the mean cross-entropy in all parameters, or the Gauss-Newton matrix J' L J.
    Lanczos's method gives the eigenvalues of largest size with their residuals. Random vectors v of signs give the
    trace, ``E[v' H v]`` (Hutchinson 1989), and the spectral density, the mean of ``sum of w_i delta(theta_i)`` over
    Lanczos's Gauss quadratures (Ubaru, Chen and Saad 2017; Ghorbani et al. 2019), each with its error. Memory does not
    grow with their number.

    Returns
    -------
    Spectrum
        ``.eigenvalues``, ``.trace`` with its ``.trace_error``, ``.density``; ``.frame()`` has all numbers, the trace
        by layer too, ``.plot()`` draws the density.

    Raises
    ------
    GradscopeError
        Where a model has no parameters or no second derivatives, or the images or an option cannot be used; the
        message names the argument.

    Examples
    --------
    >>> import torch
    >>> import gradscope as gs
    >>> x = torch.tensor([0.9, 0.2] * 8 + [0.2, 0.7] * 8).reshape(16, 1, 1, 2)
    >>> y = x.flatten(1).argmax(dim=1)
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2, bias=False)).eval()
    >>> torch.nn.init.eye_(model[1].weight)[0].tolist()
    [1.0, 0.0]
    >>> found = gs.spectrum({"pixels": model}, x, y, eigenvalues=4)
    >>> [round(float(value), 3) for value in found.eigenvalues[:2]]  # of the mean of 2 p (1 - p) x x'
    [0.236, 0.077]

    """
    return cast(Spectrum, measure(SpectrumOptions, model, x, y, options))


@_measures(AttackOptions)
def attack(model: Models, x: Any = None, y: Any = None, **options: Any) -> Attacks:
    """Run many attacks and report the lowest robust accuracy: right when clean and under every attack.

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
    >>> x = torch.tensor([0.9, 0.2] * 8 + [0.5, 0.6] * 8).reshape(16, 1, 1, 2)
    >>> y = x.flatten(1).argmax(dim=1)
    >>> found = gs.attack({"pixels": torch.nn.Flatten().eval()}, x, y, attacks="pgd", norm="linf", epsilon=0.2, steps=4)
    >>> found.robust_accuracy
    0.5

    """
    return cast(Attacks, measure(AttackOptions, model, x, y, options))


@_measures(TransferOptions)
def transfer(model: Models, x: Any = None, y: Any = None, **options: Any) -> TransferMatrix:
    """Make adversarial examples on each of several models and test them on all of these models.

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
    >>> x = torch.tensor([0.9, 0.2] * 8 + [0.5, 0.6] * 8).reshape(16, 1, 1, 2)
    >>> y = x.flatten(1).argmax(dim=1)
    >>> models = {"one": torch.nn.Flatten().eval(), "same": torch.nn.Flatten().eval()}
    >>> float(gs.transfer(models, x, y, norm="linf", epsilon=0.2, steps=4).matrix.loc["one", "same"])
    0.5

    """
    return cast(TransferMatrix, measure(TransferOptions, model, x, y, options))


@_measures(AuditOptions)
def audit(model: Models, x: Any = None, y: Any = None, **options: Any) -> AuditReport:
    """Tell whether a model's robustness is real or its gradients are masked: verdict, cause, upper bound, checks.

    Returns
    -------
    AuditReport
        ``.verdict`` and its ``.reason``, ``.causes``, ``.upper_bound`` of the robust accuracy with its ``.interval``;
        ``.frame()`` has a row for each check, with what to do next; of several models ``.audits`` has all for each.

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
    >>> report = gs.audit({"pixels": torch.nn.Flatten().eval()}, x, y, norm="linf", epsilon="127/255", budget="quick")
    >>> report.verdict, report.upper_bound
    ('none found within this budget', 0.0)

    """
    return cast(AuditReport, measure(AuditOptions, model, x, y, options))


_JUDGED = f"""\
attack
    A function ``attack(model, x, y)`` that returns the adversarial images, or these with labels or a mask of successes;
    an attack object of torchattacks, whose model is replaced meanwhile, or of foolbox; ``package.module:function``; or
    the name of one of ours.
{MEASURED}"""


@declared(_JUDGED, JudgeOptions, DataOptions, ForeignOptions, DeviceOptions)
def judge(attack: Any, model: Models, x: Any = None, y: Any = None, **options: Any) -> JudgeReport:
    """Tell whether an attack is blind and which part makes it so, by repairing one part at a time.

    Returns
    -------
    JudgeReport
        ``.verdict`` with its ``.finding``, ``.parts`` (what makes it blind), ``.left`` (the robust accuracy under it,
        judged anew), ``.bound`` (under everything tried), both None where nothing was run; ``.frame()`` has a row for
        each repair and each of ours.

    Raises
    ------
    GradscopeError
        Where the attack fails, or a model, the images or an option cannot be used; the message names the argument.

    Examples
    --------
    >>> import torch
    >>> import gradscope as gs
    >>> x = torch.tensor([0.9, 0.2] * 32 + [0.2, 0.7] * 32).reshape(64, 1, 1, 2)
    >>> y = x.flatten(1).argmax(dim=1)
    >>> def idle(model, x, y):
    ...     return x
    >>> model = {"pixels": torch.nn.Flatten().eval()}
    >>> found = gs.judge(idle, model, x, y, norm="linf", epsilon="127/255", budget="quick")
    >>> found.verdict, found.left, found.bound
    ('the attack is blind', 1.0, 0.0)

    """
    return cast(JudgeReport, measure(JudgeOptions, model, x, y, {**options, "attack": attack}))


def report(directory: str | Path) -> Path:
    """Write one self-contained ``report.html`` for a directory of results, and return its path.

    Raises :class:`GradscopeError` where ``directory`` holds no results or a file of them is damaged.
    """
    from gradscope.reporting.page import write_report

    if isinstance(directory, Result):
        raise GradscopeError("directory must be a path, got a result; save it first: gs.report(result.save(PATH))")
    return write_report(given_path(directory, "directory"))
