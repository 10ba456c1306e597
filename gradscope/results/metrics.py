"""Every metric by name, with its unit and meaning: those along an attack, of landscapes, and of attacks."""

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Metric:
    """A quantity measured along an attack; its values and intervals lie between ``low`` and ``high``.

    ``per_sample`` is False where it is a property of the whole set.
    """

    unit: str
    meaning: str
    low: float = -inf
    high: float = inf
    per_sample: bool = True


#: What `analyze --metrics` knows.
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
}

#: What `analyze --metrics` knows beside those, where it is named: each costs passes of its own.
DISTANCE_METRICS: dict[str, Metric] = {
    "linear-distance": Metric(
        "pixel units",
        "distance to the boundary if logits were linear: min over classes j of (z_y - z_j) / |grad (z_y - z_j)|_dual",
        0,
    ),
    "distance": Metric("pixel units", "distance of the nearest point that fools the model, by fmn; 0 where wrong", 0),
}
#: Every name that `analyze --metrics` takes.
ANALYZED: dict[str, Metric] = METRICS | DISTANCE_METRICS

#: What `analyze` and `attack` say of the gradients that an attack went along.
GRADIENT_METRICS: dict[str, Metric] = {
    "zero-gradient": Metric("-", "share of images whose gradient was exactly 0 at some step, never NaN or inf", 0, 1),
    "not-finite-gradient": Metric("-", "share of images whose gradient was NaN or infinite at some step", 0, 1),
}

#: What `landscape` reports beside the planes, for each image in input space and for the network in weight space.
LANDSCAPE_METRICS: dict[str, Metric] = {
    "radius-adversarial": Metric(
        "multiples of epsilon",
        "distance along the adversarial direction at which the prediction turns wrong, up to 3",
        0,
        3,
    ),
    "radius-random": Metric("multiples of epsilon", "the same along random directions, mean of 8", 0, 3),
    "beyond-adversarial": Metric("-", "share of those rays that are right to their end, where the radius is cut", 0, 1),
    "beyond-random": Metric("-", "the same along random directions", 0, 1),
    "roughness": Metric("nats per squared unit of the axes", "mean absolute second difference of the loss", 0),
    "sharpness": Metric("nats", "largest loss on the plane within 1 of its centre, minus the loss at the centre", 0),
    "curvature": Metric("nats per squared unit", "Hessian eigenvalue of largest size, of the loss"),
    "curvature-residual": Metric("-", "|H v - value v| / |value| that the power iteration reached", 0),
    "nonlinearity": Metric("nats", "max over the ball of |loss(x + d) - loss(x) - <d, g>|, by a short ascent", 0),
}

#: What `attack` reports for each attack, and for "none": the clean images.
ATTACK_METRICS: dict[str, Metric] = {
    "accuracy": Metric("-", "share of the subset that is right under this attack alone", 0, 1),
    "robust-accuracy": Metric("-", "share of all images right when clean, under this attack and all before it", 0, 1),
    "undefined": Metric("-", "share of all images whose clean logits are not finite; they count as wrong", 0, 1),
    "distance": Metric("pixel units", "norm of the perturbation that fooled the model; nan where none did", 0),
    **GRADIENT_METRICS,
    "forward": Metric("passes per image", "forward passes of the model, the final judgement not counted", 0),
    "backward": Metric("passes per image", "backward passes of the model", 0),
    "seconds": Metric("s", "time the attack took, the final judgement not counted", 0),
}
