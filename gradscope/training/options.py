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


#: The default of what a mode decides.
_PRESET = "the mode's"


class TrainingOptions(Config):
    """How models are trained: what a recipe says of many of them.

    One that :class:`gradscope.config.Training` knows by the same name is laid over the preset.
    """

    epochs: Epochs | None = option(
        None, "epochs in all, shared by the phases, at least one each", TRAINING, usual=_PRESET
    )
    batch_size: BatchSize | None = option(None, "images in each update, over all devices", TRAINING, usual=_PRESET)
    precision: Precision | None = option(
        None,
        "auto: bf16 autocast where the hardware computes in it and images have 16 pixels a side or more, else "
        "float32 (32); measurements are in float32",
        TRAINING,
        usual=default_of(Training, "precision"),
    )
    selection: Selection | None = option(
        None,
        "epoch of the last phase to keep, by accuracy on validation images: best when clean, robust under PGD, or last",
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
        None, "tables of settings, as the [[phases]] of a configuration file", TRAINING, typed=False
    )
    train_samples: TrainSamples | None = option(
        None, "training images to use, every class in its share", DATA, usual="all"
    )
    keep_epochs: bool = option(False, "keep the weights after every epoch, in NAME.epochs", RUNNING)

    def over(self, base: "TrainingOptions") -> "TrainingOptions":
        """These options where they are given, else those of ``base``; settings of both, ``base``'s first."""
        given = {key: getattr(self, key) for key in TrainingOptions.model_fields if key in self.model_fields_set}
        common = {key: getattr(base, key) for key in TrainingOptions.model_fields}
        return TrainingOptions(**common | given | {"set": (*base.set, *self.set)})


class TrainOptions(TrainingOptions):
    """``gradscope train``, :func:`gradscope.train`: which model is trained, and how."""

    mode: str = option(
        ...,
        "sl, rl, sl-adv, rl-adv, sl-rl, rl-sl; any name where you give phases of your own",
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
        """The whole configuration, on images of a size: preset < ``table`` (a TOML file) < ``set`` < other options."""
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
    """Which images a model is trained on."""

    dataset: str | None = option(
        None,
        "data set to train on, see `gradscope list datasets`",
        DATA,
        usual=default_of(Data, "dataset"),
        names="gradscope.data.names:DATASETS",
    )
