"""Every metric by name, with unit and meaning: metrics along an attack, of landscapes, and of attacks."""

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Metric:
    """A quantity measured along an attack; its values and intervals lie between ``low`` and ``high``.

    ``per_sample`` is False for a property of the whole set. ``extra`` is True for a metric that needs passes of its
    own; it is measured only if requested by name.
    """

    unit: str
    meaning: str
    low: float = -inf
    high: float = inf
    per_sample: bool = True
    extra: bool = False


#: The metrics that `analyze --metrics` accepts.
METRICS: dict[str, Metric] = {
    "cosine": Metric("-", "cosine of the gradients at consecutive iterates, <g_t, g_t-1> / (|g_t| |g_t-1|)", -1, 1),
    "sign": Metric("-", "share of coordinates with equal sign in g_t and g_t-1, among those non-zero in both", 0, 1),
    "zero": Metric("-", "share of coordinates where g_t or g_t-1 is zero; comes with sign", 0, 1),
    "norm": Metric("nats per unit pixel range", "L2 norm of the gradient of the sample's own loss in the image", 0),
    "loss": Metric("nats", "cross-entropy", 0),
    "margin": Metric("logits", "logit of the label minus the largest other"),
    "entropy": Metric("bits", "entropy of the softmax", 0),
    "accuracy": Metric("-", "share of images whose prediction is the label", 0, 1),
    "dispersion": Metric("-", "1 - norm of the mean over the set of the unit gradients", 0, 1, per_sample=False),
    "path-variance": Metric("-", "1 - mean pairwise cosine of an image's gradients along the path", 0, 2),
    "displacement": Metric("-", "|x_T - x_0| / sum of the step lengths", 0, 1),
    "fosc": Metric(
        "-",
        "1 - <x_t - x, g_t> / (epsilon * dual norm of g_t), 0 if no point of the ball is better to first order "
        "(Wang et al. 2019, normalised; the box [0, 1] is ignored)",
        0,
        2,
    ),
    "alignment": Metric(
        "-",
        "cosine of the gradients at the image and at a random point of the ball (Andriushchenko and Flammarion 2020); "
        "at most 2 more passes",
        -1,
        1,
        extra=True,
    ),
    "snr": Metric(
        "-",
        "|mean|^2 / trace of the covariance of the gradients at 8 random points of the ball (Balduzzi et al. 2017), "
        "1/8 if they are pure noise; 8 more passes",
        0,
        extra=True,
    ),
    "restart-spread": Metric(
        "nats",
        "standard deviation of the attack's loss at x_T over the starts (Madry et al. 2018); runs all starts to the "
        "end, undefined with one start",
        0,
        extra=True,
    ),
    "restart-distance": Metric(
        "pixel units", "mean L2 distance between the x_T of two starts; as many passes as restart-spread", 0, extra=True
    ),
    "linear-distance": Metric(
        "pixel units",
        "distance to the boundary if logits were linear: min over the nine likeliest wrong classes j of "
        "(z_y - z_j) / |grad (z_y - z_j)|_dual; one backward pass for each j",
        0,
        extra=True,
    ),
    "distance": Metric(
        "pixel units",
        "distance to the nearest point that fools the model, by fmn; 0 if the image is wrong",
        0,
        extra=True,
    ),
}
#: The METRICS that need no passes beyond the attack's: the default of `analyze`.
USUAL_METRICS = tuple(name for name, metric in METRICS.items() if not metric.extra)

#: The metrics that `analyze` and `attack` report of the gradients along an attack.
GRADIENT_METRICS: dict[str, Metric] = {
    "zero-gradient": Metric(
        "-", "share of images whose gradient was exactly 0 at some step, never NaN or infinite", 0, 1
    ),
    "not-finite-gradient": Metric("-", "share of images whose gradient was NaN or infinite at some step", 0, 1),
}

#: The metrics that `landscape` reports beside the planes: per image in input space, per network in weight space.
LANDSCAPE_METRICS: dict[str, Metric] = {
    "radius-adversarial": Metric(
        "multiples of epsilon",
        "distance along the adversarial direction at which the prediction turns wrong, up to 3",
        0,
        3,
    ),
    "radius-random": Metric("multiples of epsilon", "the same along random directions, mean of 8", 0, 3),
    "beyond-adversarial": Metric("-", "share of those rays that are right up to 3, where the radius is cut", 0, 1),
    "beyond-random": Metric("-", "the same along random directions", 0, 1),
    "roughness": Metric("nats per squared unit of the axes", "mean absolute second difference of the loss", 0),
    "sharpness": Metric("nats", "largest loss on the plane within 1 of its centre, minus the loss at the centre", 0),
    "curvature": Metric("nats per squared unit", "Hessian eigenvalue of largest size, of the loss"),
    "curvature-residual": Metric("-", "|H v - value v| / |value| that the power iteration reached", 0),
    "nonlinearity": Metric("nats", "max over the ball of |loss(x + d) - loss(x) - <d, g>|, by a short ascent", 0),
}

#: The metrics that `landscape --towards CKPT --line` reports of each way to the other checkpoint.
BARRIER_METRICS: dict[str, Metric] = {
    "loss-barrier": Metric("nats", "max over t in [0, 1] of loss(t) - ((1 - t) loss(0) + t loss(1))", 0),
    "accuracy-barrier": Metric("-", "max over t in [0, 1] of (1 - t) accuracy(0) + t accuracy(1) - accuracy(t)", 0, 1),
    "adversarial-loss-barrier": Metric("nats", "loss-barrier under an attack run anew at every point", 0),
    "adversarial-accuracy-barrier": Metric("-", "accuracy-barrier under an attack run anew at every point", 0, 1),
}

#: The matrices of second derivatives whose spectrum `spectrum` computes.
CURVATURE_MATRICES: dict[str, str] = {
    "hessian": "second derivatives of the loss",
    "gauss-newton": "J' L J with J the Jacobian of the logits and L the Hessian of the loss in the logits (Schraudolph "
    "2002): the Hessian without the logits' own second derivatives; no eigenvalue is negative",
}

#: The metrics that `spectrum` reports of each matrix; in input space they are means over the images.
SPECTRUM_METRICS: dict[str, Metric] = {
    "eigenvalue": Metric(
        "nats per squared unit", "eigenvalue of largest absolute value; in input space the mean of the absolute values"
    ),
    "residual": Metric("nats per squared unit", "|H u - eigenvalue u| for Lanczos's unit vector u, plus rounding", 0),
    "trace": Metric("nats per squared unit", "sum of all eigenvalues (Hutchinson 1989; known ones summed exactly)"),
    "negative-mass": Metric("-", "share of the negative eigenvalues in the sum of all absolute values", 0, 1),
    "flat": Metric("-", "share of images whose eigenvalues are all at most their residual: 0, or rounding", 0, 1),
}

#: The metrics that `transfer` reports of its models beside the matrix, at the clean images.
SIMILARITY_METRICS: dict[str, Metric] = {
    "gradient-cosine": Metric("-", "mean cosine between the margin gradients of two models at the same image", -1, 1),
    "relative-curvature": Metric(
        "per unit pixel range",
        "median of |largest Hessian eigenvalue| / |gradient| of the rescaled cross-entropy in the image",
        0,
    ),
}

#: The metrics that `attack` reports for each attack, and for "none": the clean images.
ATTACK_METRICS: dict[str, Metric] = {
    "accuracy": Metric("-", "share of the subset that is right under this attack alone", 0, 1),
    "robust-accuracy": Metric("-", "share of all images right when clean, under this attack and all before it", 0, 1),
    "undefined": Metric("-", "share of all images whose clean logits are not finite; they count as wrong", 0, 1),
    "distance": Metric("pixel units", "norm of the perturbation that fooled the model; nan if none did", 0),
    **GRADIENT_METRICS,
    "forward": Metric("passes per image", "forward passes of the model, without the final evaluation", 0),
    "backward": Metric("passes per image", "backward passes of the model", 0),
    "seconds": Metric("s", "time the attack took, without the final evaluation", 0),
}

#: The metrics that `audit` reports of the scale of the logits: under attacks that see the logits at other
#: temperatures, and of the clean images, as attack "none".
SCALE_METRICS: dict[str, Metric] = {
    "robust-accuracy": Metric("-", "share of images right when clean and under the attack at that temperature", 0, 1),
    "accuracy": Metric("-", "share of the clean images that are right; the same at every temperature", 0, 1),
    "calibration-error": Metric("-", "expected calibration error, 15 equal bins (Guo et al. 2017), clean images", 0, 1),
    "cross-entropy": Metric("nats", "mean cross-entropy of the clean images", 0),
}
