"""Where bfloat16 is faster than single precision."""

import torch


def has_bfloat16(accelerator: str) -> bool:
    """Whether the device of `--accelerator` multiplies in bfloat16 faster than in float32.

    On a processor that takes instructions for it, avx512_bf16 or amx.
    """
    if accelerator == "cuda" or (accelerator == "auto" and torch.cuda.is_available()):
        return torch.cuda.is_bf16_supported()
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))
