"""When a generation of transformers gave its first token; the extra ``transformers``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from transformers.generation.streamers import BaseStreamer

if TYPE_CHECKING:
    import torch


class FirstToken(BaseStreamer):
    """Notes when the first new token came, and hands everything on."""

    def __init__(self, inner: Any) -> None:
        self.at: float | None = None
        self._inner = inner
        self._has_prompt = False

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, then token after token."""
        if self._has_prompt and self.at is None:
            self.at = time.perf_counter()
        self._has_prompt = True
        if self._inner is not None:
            self._inner.put(value)

    def end(self) -> None:
        """Hand on the end."""
        if self._inner is not None:
            self._inner.end()
