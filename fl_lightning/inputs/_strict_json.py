"""JSON that every reader of JSON reads: what is no number is null."""

import json
import math
from collections.abc import Mapping
from typing import Any


def strict_json(value: Any) -> str:
    """A value as JSON on one line; NaN and the infinities, for which JSON has no word, become null.

    Example:
        >>> strict_json({"half": float("nan"), "mean": [0.5]})
        '{"half": null, "mean": [0.5]}'
    """
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
