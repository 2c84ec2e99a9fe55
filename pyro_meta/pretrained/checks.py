"""What has to hold of a converted model: nothing is lost, nothing leaks.

Each check runs a text of a few tokens and raises `UsageError` with what was found.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pyro_meta.errors import UsageError
from pyro_meta.pretrained.deployed import Deployed
from pyro_meta.pretrained.interface import routing_of

LENGTH, PADDING = 24, 5  # tokens
ROUNDING = 1e-5
"""By how much logits may differ, as a share of the largest, in float32; in others, their own."""


def require_faithful(hf_model: PreTrainedModel, passing: Deployed) -> None:
    """Check identity, padding and prefixes of a model that `passing` is to route."""
    routing = routing_of(hf_model)
    assert routing is not None
    was_training = hf_model.training
    hf_model.eval()
    tokens = _text(hf_model)
    try:
        with torch.no_grad():
            plain = _logits(hf_model, tokens)
            passing.forced = "full"
            with routing.within(passing):
                _require_same("with all routes full", _logits(hf_model, tokens), plain)
            passing.forced = None
            with routing.within(passing):
                whole = _logits(hf_model, tokens)
                part = _logits(hf_model, tokens[:, : LENGTH // 2])
                _require_same("of a prefix", part, whole[:, : LENGTH // 2])
                padded = _padded_logits(hf_model, tokens)
                _require_same("behind padding", padded, whole)
    finally:
        passing.forced = None
        hf_model.train(was_training)


def _text(hf_model: PreTrainedModel) -> Tensor:
    vocabulary = hf_model.config.get_text_config(decoder=True).vocab_size
    numbers = torch.arange(LENGTH, device=hf_model.device)
    return ((numbers * 7919 + 11) % vocabulary)[None]


def _logits(hf_model: PreTrainedModel, tokens: Tensor) -> Tensor:
    return hf_model(input_ids=tokens, use_cache=False).logits.float()


def _padded_logits(hf_model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Of the same text behind padding, in a batch with itself shifted."""
    padding = tokens.new_zeros(1, PADDING)
    is_token = torch.cat([torch.zeros_like(padding), torch.ones_like(tokens)], 1)
    places = (is_token.cumsum(1) - 1).clamp(min=0)
    out = hf_model(
        input_ids=torch.cat([padding, tokens], 1),
        attention_mask=is_token,
        position_ids=places,
        use_cache=False,
    )
    return out.logits.float()[:, PADDING:]


def _require_same(what: str, found: Tensor, wanted: Tensor) -> None:
    most = max(ROUNDING, 4 * torch.finfo(wanted.dtype).eps) * float(wanted.abs().max().clamp(min=1))
    gap = float((found - wanted).abs().max())
    if not gap <= most:
        raise UsageError(
            f"convert: {what} logits differ by {gap:.2g}; up to {most:.2g} is rounding"
        )
