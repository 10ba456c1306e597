"""The precision that training computes in: float32, or bfloat16 where the hardware has it."""

import torch

from gradscope.errors import caution

#: Images with a side below this stay in float32: their networks are too small for bfloat16 to pay.
SMALL_SIDE = 16
#: Images a second of cnn4 in training on two cores, by what the processor has.
_MEASURED = "cnn4 trained at 18 images a second in bf16 and 215 in float32 on two cores with AVX2 alone"


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself, by its flags: Ampere or newer, AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Not public, but in every torch that is allowed here; where one goes, auto takes float32.
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, flag, bool)() for flag in flags)


def auto_precision(device: torch.device, side: int) -> str:
    """What ``auto`` means for images of so many pixels on their shorter ``side``: "bf16" or "32"."""
    return "bf16" if side >= SMALL_SIDE and computes_in_bf16(device) else "32"


def chosen_precision(asked: str, device: torch.device, side: int, begun: str | None) -> str:
    """The precision of a run, "bf16" or "32": as ``asked``, as ``begun`` before it was interrupted, or as is fast here.

    A caution says where that is slow, or another one than a new run would take.
    """
    fast = auto_precision(device, side)
    if asked == "auto" and begun in ("32", "bf16"):
        if begun != fast:
            caution(f"precision: the run goes on in {begun}, in which it began; a new one would take {fast} here")
        return begun
    if asked == "bf16" and not computes_in_bf16(device):
        caution(f"precision: bf16 is slow here, for the hardware lacks it ({_MEASURED}); `auto` takes float32")
    return fast if asked == "auto" else asked
