"""What has to hold of a converted model: nothing is lost, nothing leaks.

Each check runs a text that is longer than a window, and raises `UsageError` with what was found.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pyro_meta.errors import UsageError
from pyro_meta.pretrained.deployed import Deployed
from pyro_meta.pretrained.interface import routing_of
from pyro_meta.pretrained.network import PretrainedNetwork, most_rounding

LEAST, MOST, PADDING = 24, 1024, 5  # tokens


def require_faithful(hf_model: PreTrainedModel, passing: Deployed) -> None:
    """Check identity, padding and prefixes of a model that `passing` is to route."""
    routing = routing_of(hf_model)
    assert routing is not None
    was_training = hf_model.training
    hf_model.eval()
    tokens = _text(hf_model, _length(passing.network))
    half = tokens.shape[1] // 2
    try:
        with torch.no_grad():
            plain = _logits(hf_model, tokens)
            if "full" in passing.network.mechanism_names:
                passing.forced = "full"
                with routing.within(passing):
                    _require_same("with all routes full", _logits(hf_model, tokens), plain)
            passing.forced = None
            with routing.within(passing):
                whole = _logits(hf_model, tokens)
                part = _logits(hf_model, tokens[:, :half])
                _require_same("of a prefix", part, whole[:, :half])
                padded = _padded_logits(hf_model, tokens)
                _require_same("behind padding", padded, whole)
    finally:
        passing.forced = None
        hf_model.train(was_training)


def _length(network: PretrainedNetwork) -> int:
    """Tokens of a text of which half is more than a window sees, if the model knows as many."""
    shape = network.shape
    return max(LEAST, min(2 * (shape.window + shape.sinks + 1), shape.context, MOST))


def _text(hf_model: PreTrainedModel, length: int) -> Tensor:
    vocabulary = hf_model.config.get_text_config(decoder=True).vocab_size
    numbers = torch.arange(length, device=hf_model.device)
    return ((numbers * 7919 + 11) % vocabulary)[None]


def _logits(hf_model: PreTrainedModel, tokens: Tensor) -> Tensor:
    return hf_model(input_ids=tokens, use_cache=False).logits


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
    return out.logits[:, PADDING:]


def _require_same(what: str, found: Tensor, wanted: Tensor) -> None:
    most = most_rounding(wanted)
    gap = float((found.float() - wanted.float()).abs().max())
    if not gap <= most:
        raise UsageError(
            f"convert: {what} logits differ by {gap:.2g}; up to {most:.2g} is rounding"
        )
