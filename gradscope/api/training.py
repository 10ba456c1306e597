"""Train in memory, as the command does."""

import tempfile
from pathlib import Path
from typing import Any

from gradscope.api.keywords import declared, of_kind, require_left_out
from gradscope.api.models import TrainedModel
from gradscope.config import Data
from gradscope.data.given import as_image_set
from gradscope.data.image_set import Splits
from gradscope.distributed.processes import Hardware
from gradscope.errors import GradscopeError
from gradscope.options import DeviceOptions
from gradscope.progress import shown
from gradscope.training.options import TrainingData, TrainOptions
from gradscope.training.request import TrainingRequest
from gradscope.training.runs import configure_training, run_training
from gradscope.validation import given_path

_TRAINED = """\
mode
    {mode}.
data, y
    The name of a data set (``gradscope list datasets``), or images and labels in memory as ``x`` and ``y`` of
    :func:`gradscope.trace`. A tenth of them is held out, to choose the best epoch.
test
    Images and labels alike, on which the finished model is judged; those of ``data`` where left out.
out
    A file for the checkpoint, which must not be there yet.
""".format(mode=TrainOptions.model_fields["mode"].description)


@declared(_TRAINED, TrainOptions, TrainingData, DeviceOptions, without="dataset")
def train(
    mode: str, data: Any = "digits", y: Any = None, *, test: Any = None, out: str | Path | None = None, **options: Any
) -> TrainedModel:
    """Train a classifier by supervised learning (``sl``), policy gradient (``rl``), adversarially, or in phases.

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
    if not isinstance(data, str):
        require_left_out(TrainingData, options, "data holds images")
    elif y is not None:
        raise GradscopeError("y must be left out where data is the name of a data set")
    request = TrainingRequest(
        options=TrainOptions.parse({"mode": mode, **of_kind(TrainOptions, options)}),
        data=TrainingData.parse(of_kind(TrainingData, options) | ({"dataset": data} if isinstance(data, str) else {})),
    )
    asked = request.options
    device = DeviceOptions.parse(of_kind(DeviceOptions, options)).device
    if asked.keep_epochs and out is None:
        raise GradscopeError("out must be given with `keep_epochs`, got None")
    if isinstance(data, str):
        training, splits = configure_training(request)
    else:
        images = as_image_set(data, y)
        splits = Splits(images, images if test is None else as_image_set(test, classes=images.classes))
        training = request.resolved(Data(dataset=images.name), images.height)
    with tempfile.TemporaryDirectory() as folder, shown(options.get("progress")):
        found = run_training(
            training,
            splits,
            Path(folder) / "model.pt" if out is None else given_path(out, "out"),
            Hardware(device),
            resume=False,
            overwrite=out is None,
            keep_epochs=asked.keep_epochs,
            trust_code=asked.trust_code,
        )
    return TrainedModel(found.checkpoint)
