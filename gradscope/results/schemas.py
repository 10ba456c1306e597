"""Every CSV schema: which columns a file has, in which order, what they mean and in what unit."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Column:
    """One column of a table; a ``later`` one is read as empty where a table was written before it existed."""

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
    Column("attack", "text", "attack along which it was measured"),
)

#: The ball that a row of STEPS or SUMMARY belongs to.
_BALL = (
    Column("norm", "text", "norm of the attack's ball: linf or l2; empty where no attack had a part in it", later=True),
    Column("epsilon", "number", "radius of that ball, pixel units; empty where there is none", later=True),
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
        Column("undefined", "integer", "images for which it is not (a gradient is exactly 0)"),
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
        Column("subset", "text", "point, and after a slash which images: all, correct or wrong at that point"),
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
        Column("epsilon", "number", "its radius, pixel units"),
        Column("metric", "text", "name, see ATTACK_METRICS"),
        Column(
            "subset",
            "text",
            "the denominator. all: every image, those wrong when clean or undefined too; attacked: those the attack "
            "was run on, right when clean and, in a cascade, under every attack before it",
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
        Column("epsilon", "number", "radius from which on the value holds, to that of the next row; pixel units"),
        Column("value", "number", "robust accuracy: share of all images whose distance is larger, an upper bound"),
        Column("ci_low", "number", "lower end of the 95 % band, which holds at all radii at once (DKW)"),
        Column("ci_high", "number", "upper end of that band"),
        Column("n", "integer", "images, those wrong when clean too"),
    ),
)

AUDIT = Table(
    "audit.csv",
    (
        *IDENTITY,
        Column("norm", "text", "norm of the ball: linf or l2"),
        Column("epsilon", "number", "its radius, pixel units"),
        Column("budget", "text", "what the audit could spend, see `gradscope audit --help`"),
        Column("verdict", "text", "masking found, none found within this budget, inconclusive, or set-up invalid"),
        Column("check", "text", "short name of the check: D1 to G1"),
        Column("name", "text", "its name in words"),
        Column("state", "text", "fired, passed or abstained"),
        Column("accuses", "integer", "1 where it fired on an outcome: alone enough for the verdict; else 0"),
        Column("value", "number", "what it measured; nan where it abstained"),
        Column("threshold", "number", "above which it fires (G1: below which)"),
        Column("ci_low", "number", "lower end of its 95 % interval: Wilson of a share, Tango of a paired difference"),
        Column("ci_high", "number", "upper end of that interval; both nan where there is none"),
        Column("n", "integer", "images it rests on; empty where that does not say anything"),
        Column("p_value", "number", "McNemar's exact, one-sided, adjusted over all tests (Holm); empty where none"),
        Column("images", "text", "indices in the test set of the images it rests on, with spaces between"),
        Column("cause", "text", "what it saw or, where it abstained, why, in a sentence"),
        Column("next_step", "text", "what to do next, in a sentence"),
    ),
)

SCALE = Table(
    "scale.csv",
    (
        *IDENTITY,
        Column("norm", "text", "norm of the ball: linf or l2"),
        Column("epsilon", "number", "its radius, pixel units"),
        Column("temperature", "number", "what the logits were divided by before the attack saw them; 1: as given"),
        Column(
            "fitted", "integer", "1 where it is the temperature of least cross-entropy on these clean images, else 0"
        ),
        Column("steps", "integer", "steps of the attack, alike at every temperature; empty where there was none"),
        Column("metric", "text", "name, see SCALE_METRICS"),
        Column("unit", "text", "unit of value"),
        Column("value", "number", "the value; predictions of the clean images are alike at every temperature"),
        Column("ci_low", "number", "lower end of the 95 % Wilson interval; empty of the calibration"),
        Column("ci_high", "number", "upper end of that interval"),
        Column("n", "integer", "images, those wrong when clean too"),
    ),
)

JUDGE = Table(
    "judge.csv",
    (
        *IDENTITY,
        Column("norm", "text", "norm of the ball: linf or l2"),
        Column("epsilon", "number", "its radius, pixel units"),
        Column("budget", "text", "what our attacks could spend, see `gradscope judge --help`"),
        Column(
            "verdict",
            "text",
            "the attack is blind, the attack is weaker, the attack is sound, invalid examples, or inconclusive",
        ),
        Column("role", "text", "clean: the images; attack: the one on trial; ours; repair; all: everything together"),
        Column("name", "text", "ours: its name; repair: what is done, in words"),
        Column("part", "text", "repair: the part of the attack that is put right; else empty"),
        Column("left", "number", "share of all images right when clean and under it; empty where it did not run"),
        Column("ci_low", "number", "lower end of its 95 % Wilson interval"),
        Column("ci_high", "number", "upper end of that interval"),
        Column("n", "integer", "images; 0 where it did not run"),
        Column("gain", "number", "what the attack on trial leaves, less what this leaves; empty where not compared"),
        Column("gain_low", "number", "lower end of the 95 % interval of that paired difference (Tango)"),
        Column("gain_high", "number", "upper end of that interval"),
        Column("p_value", "number", "McNemar's exact, one-sided, adjusted over ours or over the repairs (Holm)"),
        Column("named", "integer", "1 where the verdict names the part by this repair"),
        Column("finding", "text", "attack: why the verdict is so; repair: why it did not run; else empty"),
    ),
)

#: Checks that fire below their threshold, as AUDIT says.
FIRES_BELOW = ("G1",)
#: What an audit writes beside its tables, see :mod:`gradscope.results.audits`.
AUDIT_JSON = "audit.json"
EXAMPLE_IMAGES = "evidence.npz"
#: The page of a directory of results, and the folder of what a paper would include of them.
PAGE = "report.html"
PAPER = "paper"

ATTACK_SAMPLES = Table(
    SAMPLES.file,
    (
        *IDENTITY,
        Column("norm", "text", "norm of the ball: linf or l2"),
        Column("epsilon", "number", "its radius, pixel units; empty where any radius will do"),
        Column("index", "integer", "index of the image in the test set"),
        Column("label", "integer", "its class"),
        Column("metric", "text", "accuracy: 1 where the prediction is right; distance: see ATTACK_METRICS"),
        Column(
            "point",
            "text",
            "clean: the image, as attack 'none'; worst: where the attack led it; nearest: the nearest point found at "
            "any radius, 0 away where the image is wrong when clean, as far as the box allows where none was found",
        ),
        Column("unit", "text", "unit of value"),
        Column("value", "number", "the value; nan where undefined. An image without a row was not attacked"),
        Column("first", "integer", "1 where this attack is the first of those run that fooled the model on the image"),
    ),
)

_SOURCE = Column("source", "text", "the checkpoint that the examples were made on; empty for the clean images")

TRANSFER = Table(
    "transfer.csv",
    (
        _SOURCE,
        *IDENTITY,
        Column("norm", "text", "norm of the ball: linf or l2"),
        Column("epsilon", "number", "its radius, pixel units"),
        Column("accuracy", "number", "share of all images whose example the checkpoint, as target, gets right"),
        Column("ci_low", "number", "lower end of the 95 % Wilson interval"),
        Column("ci_high", "number", "upper end of the 95 % Wilson interval"),
        Column("n", "integer", "images, those wrong when clean too"),
    ),
)

TRANSFER_SAMPLES = Table(
    SAMPLES.file,
    (
        _SOURCE,
        *IDENTITY,
        Column("index", "integer", "index of the image in the test set"),
        Column("label", "integer", "its class"),
        Column("metric", "text", "accuracy: 1 where the checkpoint, as target, is right"),
        Column("point", "text", "clean: the image; final: the source's example of it"),
        Column("unit", "text", "unit of value"),
        Column("value", "number", "the value"),
    ),
)

SIMILARITY = Table(
    "similarity.csv",
    (
        Column("other", "text", "the checkpoint it is compared with; empty where the metric is of one checkpoint"),
        *IDENTITY,
        Column("metric", "text", "name, see SIMILARITY_METRICS; no scale of the logits changes it"),
        Column("unit", "text", "unit of value and interval"),
        Column("value", "number", "mean over the images of a cosine, median of a curvature"),
        Column("ci_low", "number", "lower end of the 95 % interval (manifest.json names the method)"),
        Column("ci_high", "number", "upper end of the 95 % interval"),
        Column("n", "integer", "clean images for which the metric is defined"),
        Column("undefined", "integer", "clean images for which it is not (a gradient is exactly 0 or not finite)"),
    ),
)

CLAIMS = Table(
    "claims.csv",
    (
        Column("claim", "text", "short name of the claim: C1 to C9 of the paper, H1 and on of the hypothesis about it"),
        Column("statement", "text", "the claim, in a sentence"),
        Column("dataset", "text", "data set of the models; empty where the study has none"),
        Column("arch", "text", "their architecture; empty where the study has none"),
        Column("statistic", "text", "what was measured, in words: the difference or share that value holds"),
        Column("direction", "text", "what the claim predicts of value: above or below a number, or not 0"),
        Column("unit", "text", "unit of value and interval"),
        Column("value", "number", "the effect as measured; nan where not tested"),
        Column("ci_low", "number", "lower end of its 95 % interval over images"),
        Column("ci_high", "number", "upper end of that interval"),
        Column("seeds_low", "number", "lower end of the 95 % interval over seeds; nan with fewer than two"),
        Column("seeds_high", "number", "upper end of that interval"),
        Column(
            "p_value",
            "number",
            "of the paired test where there is one, adjusted over all of one data set and arch (Holm); else empty",
        ),
        Column("n", "integer", "images; 0 or empty where none were compared"),
        Column("seeds", "integer", "training seeds of each mode; 0 or empty where none were compared"),
        Column("paper", "text", "the paper's figure; empty where it gives none"),
        Column("verdict", "text", "supported, not supported or not tested"),
        Column("why", "text", "why that verdict, in a sentence"),
    ),
)

HISTORY = Table(
    "history.csv",
    (
        Column("epoch", "integer", "epochs done, from 1"),
        Column("phase", "integer", "index of the phase, from 0"),
        Column("loss", "number", "mean training loss, adversarial share included"),
        Column("accuracy", "number", "share of training predictions (argmax, training mode) that are right"),
        Column("reward", "number", "mean reward of the sampled actions; empty where none are sampled"),
        Column("validation_loss", "number", "mean cross-entropy on the validation images, nats"),
        Column("validation_accuracy", "number", "share of validation images that are right"),
        Column(
            "fgsm_accuracy",
            "number",
            "share of a fixed sample of the validation images right when clean and under FGSM in the ball of the "
            "phase's adversary; empty where it has none",
            later=True,
        ),
        Column("pgd_accuracy", "number", "the same under PGD of 10 steps; the gap is overfitting to FGSM", later=True),
        Column("most_predicted", "number", "share of validation images that get the commonest prediction", later=True),
        Column("learning_rate", "number", "learning rate of the last update"),
        Column("images_per_second", "number", "training images a second, all devices"),
        Column("seconds", "number", "seconds the epoch took, validation included"),
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
            "how it leads to another checkpoint. line: straight; aligned: straight, to its units in the order that "
            "matches best; bezier: along a trained curve; empty elsewhere, and on planes that are not aligned",
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
        Column("loss", "number", "cross-entropy in nats, in weight space the mean over the images"),
        Column("margin", "number", "logit of the label minus the largest other; empty in weight space"),
        Column("predicted", "integer", "predicted class; empty in weight space"),
        Column("accuracy", "number", "share of images whose prediction is right; empty in input space"),
        Column("adversarial_loss", "number", "mean cross-entropy after an attack on the network of this point"),
        Column("adversarial_accuracy", "number", "share of images that are right after that attack"),
        Column("custom", "number", "what --metric gave at this point; nan where it failed"),
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
            "input: the checkpoint whose attack walked, with --versus the attack that did; weights: what was trained",
        ),
        Column("step", "integer", "input: iterate x_t of the attack; weights: epoch"),
        Column("a", "number", "its projection onto the plane, see landscape.csv"),
        Column("b", "number", "see a"),
        Column("off", "number", "its distance from the plane, in the unit of a and b"),
        Column(
            "loss",
            "number",
            "cross-entropy there in nats, of the model that is attacked; empty in weight space",
            later=True,
        ),
        Column(
            "gradient",
            "number",
            "input: L2 norm of the gradient that the attack steps along, of its own loss and its sum or mean over the "
            "batch, nats per unit pixel range; empty at the last iterate",
            later=True,
        ),
    ),
)

EPOCHS = Table(
    "epochs.csv",
    (
        *IDENTITY,
        *_BALL,
        Column("epoch", "integer", "epochs of training done; 0: as the weights began"),
        Column("metric", "text", "eigenvalue, residual or trace, see SPECTRUM_METRICS, of the Hessian; loss, accuracy"),
        Column("unit", "text", "unit of value, error and interval"),
        Column("value", "number", "the value, of the mean loss over the images or over the images"),
        Column("error", "number", "standard error of the trace over random vectors; else empty"),
        Column("ci_low", "number", "lower end of the 95 % interval (manifest.json names the method)"),
        Column("ci_high", "number", "upper end of that interval"),
        Column("n", "integer", "images; of the trace random vectors"),
    ),
)

_MATRIX = (
    Column("space", "text", "weights: derivatives of the mean loss in the parameters; input: of each image's own loss"),
    Column("matrix", "text", "hessian or gauss-newton, see `gradscope spectrum --help`"),
    Column("layer", "text", "weights: the module whose parameters' block it is; empty: all parameters together"),
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
        Column("error", "number", "its standard error, over random vectors or images; empty where there is none"),
        Column("ci_low", "number", "lower end of the 95 % interval (manifest.json names the method)"),
        Column("ci_high", "number", "upper end of that interval"),
        Column("n", "integer", "weights: random vectors, or 1 where none had a part in it; input: images"),
    ),
)

EIGENVALUES = Table(
    "eigenvalues.csv",
    (
        *IDENTITY,
        *_MATRIX,
        Column("index", "integer", "input: index of the image in the test set; weights: empty"),
        Column("rank", "integer", "1: of largest size, of either sign"),
        Column("value", "number", "the eigenvalue, nats per squared unit"),
        Column(
            "residual",
            "number",
            "|H u - value u| of the unit vector u, and what rounding adds: an eigenvalue is as near as this to value",
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
        Column("ci_low", "number", "lower end of the 95 % band, point by point, at least 0"),
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

#: The robustness card of a directory of results.
CARD = "card.md"
