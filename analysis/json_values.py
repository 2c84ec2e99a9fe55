"""Values in the types of JSON, which has no arrays and no NaN."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """The same in types of JSON: lists, numbers, and None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_json(value: Any) -> str:
    """The text of a JSON file; halves of surrogate pairs, as in odd file names, are written out."""
    text = json.dumps(plain(value), indent=1, allow_nan=False, ensure_ascii=False)
    return encodable(text) + "\n"


def encodable(text: str) -> str:
    r"""The text with halves of surrogate pairs, which UTF-8 has not, written as `\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
