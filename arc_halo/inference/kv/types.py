"""Types that several modules of this package name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

Layers: TypeAlias = Sequence[tuple[np.ndarray, np.ndarray]]
"""Keys and values of each layer, arrays of shape [kv_heads, tokens, dim]."""

CodecName: TypeAlias = Literal["none", "lossless", "int8"]
"""How payloads are kept: as they are, smaller and the same, or rounded to eight bits for each channel."""
