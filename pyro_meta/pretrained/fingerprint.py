"""Telling a model by its weights."""

import hashlib

import torch
from torch import nn


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all weights, by name, rounded to bfloat16.

    So it is the same whether they were loaded in float64, float32 or bfloat16. In float16 it is
    another one: what that leaves of small weights is rounded to something else.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        rounded = weight.detach().to("cpu", torch.bfloat16).contiguous()
        digest.update(f"{name} {list(weight.shape)}\n".encode())
        digest.update(rounded.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
