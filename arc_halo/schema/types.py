"""Column types that are more than SQLAlchemy's: vectors as float32 arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pgvector.sqlalchemy import VECTOR

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Dialect


class Vector(VECTOR):
    """A pgvector column whose values are one-dimensional float32 arrays.

    pgvector itself gives lists of Python floats, eight times the memory and useless for arithmetic.
    """

    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        """Turn what the driver gives, text or list, into an array."""
        to_list = super().result_processor(dialect, coltype)

        def process(value: Any) -> np.ndarray | None:
            return None if value is None else np.asarray(to_list(value), dtype=np.float32)

        return process
