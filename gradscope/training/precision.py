"""Choose the precision of training: float32, or bfloat16 if the hardware supports it."""

import torch

from gradscope.errors import caution

#: Images with a side below this use float32, because their networks are too small to gain from bfloat16.
SMALL_SIDE = 16
#: Measured speed of training cnn4 without hardware support for bfloat16.
_MEASURED = "cnn4 trained at 18 images a second in bf16 and 215 in float32 on two cores with AVX2 alone"


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the hardware supports bfloat16, by its flags: Ampere or newer, AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Private, but in every supported torch; if one disappears, auto chooses float32.
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, flag, bool)() for flag in flags)


def auto_precision(device: torch.device, side: int) -> str:
    """Resolve ``auto`` for images whose shorter ``side`` has this many pixels: "bf16" or "32"."""
    return "bf16" if side >= SMALL_SIDE and computes_in_bf16(device) else "32"


def chosen_precision(asked: str, device: torch.device, side: int, begun: str | None) -> str:
    """Choose the precision of a run, "bf16" or "32": ``asked``, else ``begun`` (of a resumed run), else the fast one.

    Warn if this precision is slow here, or differs from the one that a new run would choose.
    """
    fast = auto_precision(device, side)
    if asked == "auto" and begun in ("32", "bf16"):
        if begun != fast:
            caution(f"precision: the run continues in {begun}, in which it began; a new run would use {fast} here")
        return begun
    if asked == "bf16" and not computes_in_bf16(device):
        caution(f"precision: bf16 is slow here, as the hardware lacks it ({_MEASURED}); `auto` chooses float32")
    return fast if asked == "auto" else asked
