"""The options of training, declared once for ``gradscope train``, :func:`gradscope.train` and recipes."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator

from gradscope.config import BatchSize, Data, Epochs, Precision, Seed, Selection, Training, TrainSamples
from gradscope.options import DATA, MODEL, RUNNING, TRAINING, DataOptions, default_of, option, several
from gradscope.training.phases import resolve
from gradscope.validation import Config

_Table = Annotated[
    dict[str, Any], BeforeValidator(lambda value: value.model_dump() if isinstance(value, BaseModel) else value)
]


#: The default shown for options that the mode decides.
_PRESET = "the mode's"


class TrainingOptions(Config):
    """The options of training that a recipe may set for many models.

    An option with the name of a field of :class:`gradscope.config.Training` replaces the preset's value.
    """

    epochs: Epochs | None = option(
        None, "total epochs, shared by the phases, at least one each", TRAINING, usual=_PRESET
    )
    batch_size: BatchSize | None = option(None, "images in each update, over all devices", TRAINING, usual=_PRESET)
    precision: Precision | None = option(
        None,
        "auto: bf16 autocast if the hardware supports it and images have sides of at least 16 pixels, else "
        "float32 (32); measurements are in float32",
        TRAINING,
        usual=default_of(Training, "precision"),
    )
    selection: Selection | None = option(
        None,
        "epoch of the last phase to keep: best clean accuracy on validation images, robust (best under PGD), or last",
        TRAINING,
        usual=default_of(Training, "selection"),
    )
    paper: bool = option(False, "use the paper's architecture, schedule and augmentation", TRAINING)
    set: Annotated[tuple[str, ...], BeforeValidator(several)] = option(
        (),
        "change a setting of the mode's preset, such as phases.0.exploration=0.3; repeatable",
        TRAINING,
        metavar="KEY=VALUE",
        repeatable=True,
    )
    phases: tuple[_Table, ...] | None = option(
        None, "tables of settings, like [[phases]] in a configuration file", TRAINING, typed=False
    )
    train_samples: TrainSamples | None = option(
        None, "training images to use, in proportion to the classes", DATA, usual="all"
    )
    keep_epochs: bool = option(False, "keep the weights after every epoch, in NAME.epochs", RUNNING)

    def over(self, base: "TrainingOptions") -> "TrainingOptions":
        """Merge these options over those of ``base``; the settings ``set`` of both are joined, ``base``'s first."""
        given = {key: getattr(self, key) for key in TrainingOptions.model_fields if key in self.model_fields_set}
        common = {key: getattr(base, key) for key in TrainingOptions.model_fields}
        return TrainingOptions(**common | given | {"set": (*base.set, *self.set)})


class TrainOptions(TrainingOptions):
    """The options of ``gradscope train`` and :func:`gradscope.train`."""

    mode: str = option(
        ...,
        "sl, rl, sl-adv, rl-adv, sl-rl or rl-sl; any name if you give your own phases",
        TRAINING,
        names="gradscope.training.phases:MODES",
    )
    seed: Seed | None = option(
        None, "seed of weights, order, augmentation and actions", TRAINING, usual=default_of(Training, "seed")
    )
    architecture: str | None = option(
        None,
        "see `gradscope list architectures`, or your own package.module:factory(...)",
        MODEL,
        usual="by the size of the images",
        names="gradscope.models.names:ARCHITECTURES",
        flag="--arch",
    )
    trust_code: bool = option(False, "run the code of your own architecture", MODEL)

    def resolved(self, data: Data, image_size: int, table: Mapping[str, Any] | None = None) -> Training:
        """Resolve the configuration for images of a size: preset < ``table`` (TOML) < ``set`` < other options."""
        phases = self.model_dump(mode="json", include={"phases"}, exclude_none=True)
        given = self.model_dump(include=Training.model_fields.keys() - {"phases"}, exclude_none=True)
        return resolve(
            self.mode,
            data,
            image_size,
            paper=self.paper,
            table={**(table or {}), **phases},
            settings=self.set,
            epochs=self.epochs,
            options=given | {"data": data.model_dump()},
        )


class TrainingData(DataOptions):
    """The options of the images to train on."""

    dataset: str | None = option(
        None,
        "data set to train on, see `gradscope list datasets`",
        DATA,
        usual=default_of(Data, "dataset"),
        names="gradscope.data.names:DATASETS",
    )
