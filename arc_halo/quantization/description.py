"""What config.json says of quantised tensors, so that whoever has the file can read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from arc_halo.dtypes import by_name
from arc_halo.errors import ModelFolderError, TensorError
from arc_halo.quantization.abc import SUITABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from arc_halo.dtypes import DType

FIELD: Final = "quantization_config"
"""Where transformers looks, too. It would take codes for numbers, with a warning only, where ``quant_method`` is one it
does not know; where there is none it refuses. So ours has none."""
TOOL_KEY: Final = "quantized_by"
TOOL: Final = "arc-halo"
SCALE_SUFFIX: Final = "_scale"
"""As in other tools: ``x.weight_scale`` beside ``x.weight``."""


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """What a quantised tensor was. Its codes have its name, its scales that with ``_scale`` behind it.

    Those of tied tensors have the name of the one that the others are tied to.
    """

    name: str
    scale_name: str
    dtype: DType
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Description:
    """The scheme of a model's quantised tensors, and what they were.

    In a config it is::

        "quantization_config": {
            "quantized_by": "arc-halo",
            "scheme": "int8",
            "tensors": {"pooler.dense.weight": {"scale": "pooler.dense.weight_scale", "dtype": "F32", "shape": [9, 9]}}
        }
    """

    scheme: str
    tensors: Mapping[str, QuantizedTensor]

    def added_to(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config with this description in it."""
        tensors = {
            each.name: {"scale": each.scale_name, "dtype": each.dtype.name, "shape": list(each.shape)}
            for each in self.tensors.values()
        }
        return {**config, FIELD: {TOOL_KEY: TOOL, "scheme": self.scheme, "tensors": tensors}}

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Description | None:
        """The description in a config; None where it has none, or one of another tool.

        Raises
        ------
        ModelFolderError
            It is damaged.
        """
        described = config.get(FIELD)
        if not isinstance(described, dict) or described.get(TOOL_KEY) != TOOL:
            return None
        try:
            tensors = {name: _tensor(name, each) for name, each in described["tensors"].items()}
            return cls(str(described["scheme"]), tensors)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelFolderError(
                f"the {FIELD} of config.json does not say what was quantised ({error!r}); restore the file"
            ) from error


def _tensor(name: str, described: Mapping[str, Any]) -> QuantizedTensor:
    shape = tuple(described["shape"])
    if not all(type(length) is int and length >= 0 for length in shape):
        raise TensorError(f"{name!r} cannot have the shape {shape}")
    if described["dtype"] not in SUITABLE:
        raise TensorError(f"{name!r} cannot have been {described['dtype']!r}")
    return QuantizedTensor(name, str(described["scale"]), by_name(described["dtype"]), shape)
