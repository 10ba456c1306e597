"""Every CSV schema: the columns of each file, in order, with meaning and unit."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Column:
    """One column of a table. A ``later`` column reads as empty from tables written before it was added."""

    name: str
    kind: Literal["text", "integer", "number"]
    meaning: str
    later: bool = False


@dataclass(frozen=True)
class Table:
    """One CSV file: its name and its columns, in order."""

    file: str
    columns: tuple[Column, ...]

    @property
    def names(self) -> list[str]:
        """Column names, in order."""
        return [column.name for column in self.columns]


IDENTITY = (
    Column("checkpoint", "text", "short name of the checkpoint"),
    Column("mode", "text", "training mode, or 'foreign' for a model trained elsewhere"),
    Column("dataset", "text", "data set that was attacked"),
    Column("arch", "text", "architecture"),
    Column("seed", "integer", "training seed; empty for a foreign model"),
    Column("attack", "text", "attack along which the values were measured"),
)

#: The norm ball in which a row was measured.
_BALL = (
    Column("norm", "text", "norm of the attack's ball: linf or l2; empty if no attack was involved", later=True),
    Column("epsilon", "number", "radius of that ball, pixel units; empty if there is none", later=True),
)

STEPS = Table(
    "steps.csv",
    (
        *IDENTITY,
        *_BALL,
        Column("step", "integer", "iterate x_t the value belongs to; 0 is the start, T the final point"),
        Column("metric", "text", "name, see `gradscope list metrics`"),
        Column("unit", "text", "unit of mean, std and interval"),
        Column("mean", "number", "mean over the images for which the metric is defined"),
        Column("std", "number", "sample standard deviation over those images"),
        Column("ci_low", "number", "lower end of the 95 % interval (manifest.json names the method)"),
        Column("ci_high", "number", "upper end of the 95 % interval"),
        Column("n", "integer", "images for which the metric is defined"),
        Column("undefined", "integer", "images for which the metric is undefined (a gradient is exactly 0)"),
    ),
)

SAMPLES = Table(
    "samples.csv",
    (
        *IDENTITY,
        Column("index", "integer", "index of the image in the test set"),
        Column("label", "integer", "its class"),
        Column("metric", "text", "name, see `gradscope list metrics`"),
        Column(
            "point",
            "text",
            "clean: the image; final: x_T; worst: the strongest iterate of all starts; path: over x_0 .. x_T-1; "
            "around: over the ball or the plane around the image",
        ),
        Column("unit", "text", "unit of value"),
        Column("value", "number", "the value; nan where undefined"),
    ),
)

SUMMARY = Table(
    "summary.csv",
    (
        *IDENTITY,
        *_BALL,
        Column("metric", "text", "name, see `gradscope list metrics`"),
        Column("subset", "text", "point, a slash, and the images: all, correct or wrong at that point"),
        Column("unit", "text", "unit of value and interval"),
        Column("value", "number", "mean over the subset, or the value of the whole set"),
        Column("ci_low", "number", "lower end of the 95 % interval (manifest.json names the method)"),
        Column("ci_high", "number", "upper end of the 95 % interval"),
        Column("n", "integer", "images in the subset for which the metric is defined"),
    ),
)

ATTACKS = Table(
    "attacks.csv",
    (
        *IDENTITY,
        Column("norm", "text", "norm of the ball: linf or l2"),
        Column("epsilon", "number", "radius of the ball, pixel units"),
        Column("metric", "text", "name, see ATTACK_METRICS"),
        Column(
            "subset",
            "text",
            "the denominator. all: every image, including those wrong or undefined when clean; attacked: images that "
            "the attack ran on, right when clean and, in a cascade, under every attack before it",
        ),
        Column("unit", "text", "unit of value and interval"),
        Column("value", "number", "share or mean over the subset; seconds are the sum over it"),
        Column("ci_low", "number", "lower end of the 95 % Wilson interval; empty for costs"),
        Column("ci_high", "number", "upper end of the 95 % Wilson interval; empty for costs"),
        Column("n", "integer", "images in the subset"),
    ),
)

CURVE = Table(
    "curve.csv",
    (
        *IDENTITY,
        Column("norm", "text", "norm of the distances: linf or l2"),
        Column("epsilon", "number", "the value holds from this radius up to that of the next row; pixel units"),
        Column("value", "number", "robust accuracy, an upper bound: share of all images with a larger distance"),
        Column("ci_low", "number", "lower end of the 95 % band, simultaneous over all radii (DKW)"),
        Column("ci_high", "number", "upper end of that band"),
        Column("n", "integer", "images, including those wrong when clean"),
    ),
)

AUDIT = Table(
    "audit.csv",
    (
        *IDENTITY,
        Column("norm", "text", "norm of the ball: linf or l2"),
        Column("epsilon", "number", "radius of the ball, pixel units"),
        Column("budget", "text", "budget of the audit, see `gradscope audit --help`"),
        Column("verdict", "text", "masking found, none found within this budget, inconclusive, or set-up invalid"),
        Column("check", "text", "short name of the check: D1 to G1"),
        Column("name", "text", "its name in words"),
        Column("state", "text", "fired, passed or abstained"),
        Column("accuses", "integer", "1 if it fired on an attack's outcome, which alone decides the verdict; else 0"),
        Column("value", "number", "the value it measured; nan if it abstained"),
        Column("threshold", "number", "it fires above this value (G1: below)"),
        Column("ci_low", "number", "lower end of its 95 % interval: Wilson for a share, Tango for a paired difference"),
        Column("ci_high", "number", "upper end of that interval; both nan if there is none"),
        Column("n", "integer", "images it used; empty if their number has no meaning"),
        Column("p_value", "number", "exact one-sided McNemar test, adjusted over all tests (Holm); empty if none"),
        Column("images", "text", "indices in the test set of the images that are its evidence, separated by spaces"),
        Column("cause", "text", "its finding or, if it abstained, the reason, in a sentence"),
        Column("next_step", "text", "what to do next, in a sentence"),
    ),
)

SCALE = Table(
    "scale.csv",
    (
        *IDENTITY,
        Column("norm", "text", "norm of the ball: linf or l2"),
        Column("epsilon", "number", "radius of the ball, pixel units"),
        Column("temperature", "number", "divisor of the logits that the attack sees; 1: the model's own logits"),
        Column("fitted", "integer", "1 for the temperature of least cross-entropy on these clean images, else 0"),
        Column("steps", "integer", "steps of the attack, the same at every temperature; empty if there was no attack"),
        Column("metric", "text", "name, see SCALE_METRICS"),
        Column("unit", "text", "unit of value"),
        Column("value", "number", "the value; predictions of the clean images are the same at every temperature"),
        Column("ci_low", "number", "lower end of the 95 % Wilson interval; empty for the calibration"),
        Column("ci_high", "number", "upper end of that interval"),
        Column("n", "integer", "images, including those wrong when clean"),
    ),
)

JUDGE = Table(
    "judge.csv",
    (
        *IDENTITY,
        Column("norm", "text", "norm of the ball: linf or l2"),
        Column("epsilon", "number", "radius of the ball, pixel units"),
        Column("budget", "text", "budget of gradscope's own attacks, see `gradscope judge --help`"),
        Column(
            "verdict",
            "text",
            "the attack is blind, the attack is weaker, the attack is sound, invalid examples, or inconclusive",
        ),
        Column(
            "role",
            "text",
            "clean: no attack; attack: on trial; ours: of gradscope; repair; all: all together",
        ),
        Column("name", "text", "ours: name of the attack; repair: the change, in words"),
        Column("part", "text", "repair: the part of the attack that it corrects; else empty"),
        Column("left", "number", "share of all images right when clean and under it; empty if it did not run"),
        Column("ci_low", "number", "lower end of its 95 % Wilson interval"),
        Column("ci_high", "number", "upper end of that interval"),
        Column("n", "integer", "images; 0 if it did not run"),
        Column("gain", "number", "`left` of the attack on trial minus `left` of this row; empty if not compared"),
        Column("gain_low", "number", "lower end of the 95 % interval of that paired difference (Tango)"),
        Column("gain_high", "number", "upper end of that interval"),
        Column("p_value", "number", "exact one-sided McNemar test, adjusted over ours or over the repairs (Holm)"),
        Column("named", "integer", "1 if the verdict names the part because of this repair"),
        Column("finding", "text", "attack: reason for the verdict; repair: reason it did not run; else empty"),
    ),
)

#: Checks that fire below their threshold; all others fire above it.
FIRES_BELOW = ("G1",)
#: The files that an audit writes beside its tables, see :mod:`gradscope.results.audits`.
AUDIT_JSON = "audit.json"
EXAMPLE_IMAGES = "evidence.npz"
#: The HTML page of a directory of results, and its folder of figures and tables for a paper.
PAGE = "report.html"
PAPER = "paper"

ATTACK_SAMPLES = Table(
    SAMPLES.file,
    (
        *IDENTITY,
        Column("norm", "text", "norm of the ball: linf or l2"),
        Column("epsilon", "number", "radius of the ball, pixel units; empty for attacks without a radius"),
        Column("index", "integer", "index of the image in the test set"),
        Column("label", "integer", "its class"),
        Column("metric", "text", "accuracy: 1 if the prediction is right, else 0; distance: see ATTACK_METRICS"),
        Column(
            "point",
            "text",
            "clean: the image, as attack 'none'; worst: the attack's result; nearest: the nearest adversarial point "
            "at any radius (distance 0 if the image is wrong when clean, the box's reach if none was found)",
        ),
        Column("unit", "text", "unit of value"),
        Column("value", "number", "the value; nan if undefined. An image without a row was not attacked"),
        Column("first", "integer", "1 if this attack was the first to fool the model on the image, else 0"),
    ),
)

_SOURCE = Column("source", "text", "the checkpoint on which the examples were made; empty for the clean images")

TRANSFER = Table(
    "transfer.csv",
    (
        _SOURCE,
        *IDENTITY,
        Column("norm", "text", "norm of the ball: linf or l2"),
        Column("epsilon", "number", "radius of the ball, pixel units"),
        Column("accuracy", "number", "share of all images whose example the target, `checkpoint`, gets right"),
        Column("ci_low", "number", "lower end of the 95 % Wilson interval"),
        Column("ci_high", "number", "upper end of the 95 % Wilson interval"),
        Column("n", "integer", "images, including those wrong when clean"),
    ),
)

TRANSFER_SAMPLES = Table(
    SAMPLES.file,
    (
        _SOURCE,
        *IDENTITY,
        Column("index", "integer", "index of the image in the test set"),
        Column("label", "integer", "its class"),
        Column("metric", "text", "accuracy: 1 if the target, `checkpoint`, is right, else 0"),
        Column("point", "text", "clean: the image; final: the source's example of it"),
        Column("unit", "text", "unit of value"),
        Column("value", "number", "the value"),
    ),
)

SIMILARITY = Table(
    "similarity.csv",
    (
        Column("other", "text", "the checkpoint compared with; empty for a metric of one checkpoint"),
        *IDENTITY,
        Column("metric", "text", "name, see SIMILARITY_METRICS; independent of the scale of the logits"),
        Column("unit", "text", "unit of value and interval"),
        Column("value", "number", "over the images, the mean of a cosine or the median of a curvature"),
        Column("ci_low", "number", "lower end of the 95 % interval (manifest.json names the method)"),
        Column("ci_high", "number", "upper end of the 95 % interval"),
        Column("n", "integer", "clean images for which the metric is defined"),
        Column(
            "undefined",
            "integer",
            "clean images for which it is undefined (a gradient is exactly 0 or not finite)",
        ),
    ),
)

CLAIMS = Table(
    "claims.csv",
    (
        Column("claim", "text", "short name: C1 to C9 are the paper's claims, H1 and up our hypothesis about them"),
        Column("statement", "text", "the claim, in a sentence"),
        Column("dataset", "text", "data set of the models; empty if the study has no such models"),
        Column("arch", "text", "their architecture; empty if the study has no such models"),
        Column("statistic", "text", "the difference or share in `value`, in words"),
        Column("direction", "text", "prediction of the claim: value above or below a number, or not 0"),
        Column("unit", "text", "unit of value and interval"),
        Column("value", "number", "the measured effect; nan if not tested"),
        Column("ci_low", "number", "lower end of its 95 % interval over images"),
        Column("ci_high", "number", "upper end of that interval"),
        Column("seeds_low", "number", "lower end of the 95 % interval over seeds; nan with fewer than two"),
        Column("seeds_high", "number", "upper end of that interval"),
        Column(
            "p_value",
            "number",
            "of the paired test if there is one, adjusted over all tests of a data set and arch (Holm); else empty",
        ),
        Column("n", "integer", "images; 0 or empty if none were compared"),
        Column("seeds", "integer", "training seeds of each mode; 0 or empty if none were compared"),
        Column("paper", "text", "the paper's number; empty if it gives none"),
        Column("verdict", "text", "supported, not supported or not tested"),
        Column("why", "text", "reason for the verdict, in a sentence"),
    ),
)

HISTORY = Table(
    "history.csv",
    (
        Column("epoch", "integer", "epochs done, from 1"),
        Column("phase", "integer", "index of the phase, from 0"),
        Column("loss", "number", "mean training loss, including the adversarial share"),
        Column("accuracy", "number", "share of training predictions (argmax, training mode) that are right"),
        Column("reward", "number", "mean reward of the sampled actions; empty if none are sampled"),
        Column("validation_loss", "number", "mean cross-entropy on the validation images, nats"),
        Column("validation_accuracy", "number", "share of validation images that are right"),
        Column(
            "fgsm_accuracy",
            "number",
            "share of a fixed sample of the validation images right when clean and under FGSM in the ball of the "
            "phase's adversary; empty if the phase has no adversary",
            later=True,
        ),
        Column("pgd_accuracy", "number", "the same under PGD of 10 steps; the gap is overfitting to FGSM", later=True),
        Column("most_predicted", "number", "share of validation images with the most frequent prediction", later=True),
        Column("learning_rate", "number", "learning rate of the last update"),
        Column("images_per_second", "number", "training images per second, over all devices"),
        Column("seconds", "number", "seconds that the epoch took, including validation"),
    ),
)

_SPACE = Column("space", "text", "input: around an image; weights: around a network's weights")

LANDSCAPE = Table(
    "landscape.csv",
    (
        *IDENTITY,
        _SPACE,
        Column(
            "way",
            "text",
            "way to another checkpoint. line: straight; aligned: straight, after its units are permuted to match "
            "best; bezier: along a trained curve; empty elsewhere, and on planes without alignment",
            later=True,
        ),
        Column("index", "integer", "index of the image in the test set; empty in weight space"),
        Column("label", "integer", "the image's class; empty in weight space"),
        Column(
            "a",
            "number",
            "coordinate along the first direction (manifest.json names both and their unit)",
        ),
        Column("b", "number", "coordinate along the second direction; 0 on a line"),
        Column("loss", "number", "cross-entropy in nats; in weight space the mean over the images"),
        Column("margin", "number", "logit of the label minus the largest other; empty in weight space"),
        Column("predicted", "integer", "predicted class; empty in weight space"),
        Column("accuracy", "number", "share of images whose prediction is right; empty in input space"),
        Column("adversarial_loss", "number", "mean cross-entropy after an attack on the network of this point"),
        Column("adversarial_accuracy", "number", "share of images that are right after that attack"),
        Column("custom", "number", "value of the function given as --metric at this point; nan if it failed"),
    ),
)

PATH = Table(
    "path.csv",
    (
        *IDENTITY,
        _SPACE,
        Column("index", "integer", "index of the image in the test set; empty in weight space"),
        Column(
            "walker",
            "text",
            "input: the checkpoint that the attack ran on, with --versus the attack; weights: the trained checkpoint",
        ),
        Column("step", "integer", "input: iterate x_t of the attack; weights: epoch"),
        Column("a", "number", "its projection onto the plane, see landscape.csv"),
        Column("b", "number", "its projection onto the plane, see landscape.csv"),
        Column("off", "number", "its distance from the plane, in the unit of a and b"),
        Column(
            "loss",
            "number",
            "cross-entropy of the attacked model at this iterate, in nats; empty in weight space",
            later=True,
        ),
        Column(
            "gradient",
            "number",
            "input: L2 norm of the gradient that the attack follows (of the attack's own loss, summed or averaged "
            "over the batch as it does), nats per unit pixel range; empty at the last iterate",
            later=True,
        ),
    ),
)

EPOCHS = Table(
    "epochs.csv",
    (
        *IDENTITY,
        *_BALL,
        Column("epoch", "integer", "epochs of training done; 0: the initial weights"),
        Column("metric", "text", "eigenvalue, residual or trace of the Hessian (see SPECTRUM_METRICS); loss, accuracy"),
        Column("unit", "text", "unit of value, error and interval"),
        Column("value", "number", "the value: over the images, or of their mean loss for the Hessian"),
        Column("error", "number", "standard error of the trace over random vectors; else empty"),
        Column("ci_low", "number", "lower end of the 95 % interval (manifest.json names the method)"),
        Column("ci_high", "number", "upper end of that interval"),
        Column("n", "integer", "images; for the trace random vectors"),
    ),
)

_MATRIX = (
    Column("space", "text", "weights: of the mean loss in the parameters; input: of an image's loss in the image"),
    Column("matrix", "text", "hessian or gauss-newton, see `gradscope spectrum --help`"),
    Column("layer", "text", "weights: the module whose parameters form the block; empty: all parameters"),
)

SPECTRUM = Table(
    "spectrum.csv",
    (
        *IDENTITY,
        *_BALL,
        *_MATRIX,
        Column("metric", "text", "name, see SPECTRUM_METRICS"),
        Column("unit", "text", "unit of value, error and interval"),
        Column("value", "number", "the value; in input space the mean over the images"),
        Column("error", "number", "its standard error, over random vectors or images; empty if there is none"),
        Column("ci_low", "number", "lower end of the 95 % interval (manifest.json names the method)"),
        Column("ci_high", "number", "upper end of that interval"),
        Column("n", "integer", "weights: random vectors, or 1 if none were used; input: images"),
    ),
)

EIGENVALUES = Table(
    "eigenvalues.csv",
    (
        *IDENTITY,
        *_MATRIX,
        Column("index", "integer", "input: index of the image in the test set; weights: empty"),
        Column("rank", "integer", "1 for the eigenvalue of largest absolute value"),
        Column("value", "number", "the eigenvalue, nats per squared unit"),
        Column(
            "residual",
            "number",
            "|H u - value u| for the unit vector u, plus rounding error: an eigenvalue lies within this of value",
        ),
    ),
)

DENSITY = Table(
    "density.csv",
    (
        *IDENTITY,
        *_MATRIX,
        Column("eigenvalue", "number", "nats per squared unit"),
        Column("density", "number", "density of the eigenvalues there, area 1: mean over random vectors or images"),
        Column("ci_low", "number", "lower end of the pointwise 95 % band, at least 0"),
        Column("ci_high", "number", "upper end of that band"),
    ),
)

BANDS = Table(
    "bands.csv",
    (
        *IDENTITY,
        Column("a", "number", "see landscape.csv"),
        Column("b", "number", "see landscape.csv"),
        Column("metric", "text", "loss or margin"),
        Column("unit", "text", "unit of the quantiles"),
        Column("q05", "number", "5 % quantile over the images"),
        Column("q25", "number", "25 % quantile"),
        Column("median", "number", "50 % quantile"),
        Column("q75", "number", "75 % quantile"),
        Column("q95", "number", "95 % quantile"),
        Column("right", "number", "share of the images whose prediction is right at this point"),
        Column("n", "integer", "images"),
    ),
)

#: The file of the robustness card of a directory of results.
CARD = "card.md"
