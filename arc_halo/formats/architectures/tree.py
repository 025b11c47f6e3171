"""The layer tree of one model: tensors are hung into their family's modules, the rest into layers ``other``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from arc_halo.formats.architectures.abc import NUMBER, QUANTIZED, module_number
from arc_halo.formats.architectures.description import LayerSpec, WeightSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from arc_halo.formats.architectures.abc import Match, Module
    from arc_halo.formats.architectures.description import LayerType, Shaped, WeightCategory

# What frameworks call state that is no parameter, in modules nobody declared.
BUFFER_NAMES = frozenset({"position_ids", "inv_freq", "running_mean", "running_var", "num_batches_tracked"})
_LAST = 1 << 30  # `other` layers stand after the declared ones
_MATRIX = 2


@dataclass(slots=True)
class Layer:
    """A layer while its tensors are collected; ``weights`` are its matrices by the path its module owns them at."""

    key: str
    parent: Layer | None
    name: str
    layer_index: int | None
    layer_type: LayerType
    module: Module | None
    order: tuple[tuple[int, ...], ...]
    weights: dict[str, Shaped] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


class LayerTree:
    """Layers by key, and each tensor's layer and category."""

    def __init__(self) -> None:
        self.layers: dict[str, Layer] = {}
        self.weights: dict[str, WeightSpec] = {}
        self.unrecognised = 0
        self._deepest = 0

    def hang(self, tensor: Shaped, match: Match) -> None:
        """Put a recognised tensor into its layer, which is made with its parents where it is new."""
        layer = self._declared_layer(match)
        if match.parameter in {"weight", "gamma", ""}:
            layer.weights[match.place.owned] = tensor
        self._add_weight(tensor, layer, _category(match), may_train=match.parameter not in QUANTIZED)

    def hang_other(self, tensor: Shaped) -> None:
        """Put a tensor nobody declared into a layer ``other``, below the declared layer whose name it carries."""
        parts = tensor.name.split(".")
        parent, depth = self._nearest(parts)
        if parent is None:
            # One layer for each numbered module, and one for each top-level module without numbers.
            depth = next((i for i, part in enumerate(parts[:-1]) if module_number(part) is not None), 0)
        key = ".".join(parts[: depth + 1])
        layer = self.layers.get(key)
        if layer is not None and layer.module is not None:  # a tensor that is called like a declared layer
            parent, key = layer, f"{key}.other"
            layer = self.layers.get(key)
        if layer is None:
            index = parent.layer_index if parent else module_number(parts[depth])
            order = (*(parent.order if parent else ()), (_LAST, len(self.layers)))
            layer = Layer(key, parent, key.rpartition(".")[2], index, "other", None, order)
            self.layers[key] = layer
        self.unrecognised += 1
        is_buffer = parts[-1] in BUFFER_NAMES or not tensor.dtype.is_float
        self._add_weight(tensor, layer, "buffer" if is_buffer else "other", may_train=True)

    def specs(self) -> Iterator[LayerSpec]:
        """Layers in their order, parents before children."""
        ordered = sorted(self.layers.values(), key=lambda layer: layer.order)
        widths = _block_widths(ordered)
        for layer in ordered:
            dims = (widths.get(layer.key),) * 2 if layer.layer_type == "block" else _dimensions(layer)
            yield LayerSpec(
                layer.key,
                layer.parent.key if layer.parent else None,
                layer.name,
                layer.layer_index,
                layer.layer_type,
                dims[0],
                dims[1],
                layer.config,
            )

    def _add_weight(self, tensor: Shaped, layer: Layer, category: WeightCategory, *, may_train: bool) -> None:
        is_trainable = may_train and category != "buffer" and tensor.dtype.is_trainable
        self.weights[tensor.name] = WeightSpec(tensor.name, layer.key, category, None, is_trainable)

    def _declared_layer(self, match: Match) -> Layer:
        numbers = iter(match.numbers)
        layer: Layer | None = None
        key = match.prefix.removesuffix(".")
        order: tuple[tuple[int, ...], ...] = ()
        for module, ordinal in zip(match.place.modules, match.place.order, strict=True):
            parts = [next(numbers) if part == NUMBER else part for part in module.name.split(".")]
            name = ".".join(parts)
            key = f"{key}.{name}" if key else name
            order = (*order, (ordinal, *(int(part) for part in parts if part.isdecimal())))
            parent, layer = layer, self.layers.get(key)
            if layer is None:
                index = int(parts[-1]) if module.layer_type == "block" else parent.layer_index if parent else None
                layer = Layer(key, parent, name, index, module.layer_type, module, order)
                self.layers[key] = layer
                self._deepest = max(self._deepest, key.count(".") + 1)
        assert layer is not None  # a place has at least one module
        return layer

    def _nearest(self, parts: list[str]) -> tuple[Layer | None, int]:
        # No deeper than any declared layer is: a name may have five hundred parts, and a file many such names.
        for depth in range(min(len(parts) - 1, self._deepest), 0, -1):
            layer = self.layers.get(".".join(parts[:depth]))
            if layer is not None and layer.module is not None:
                return layer, depth
        return None, 0


def _category(match: Match) -> WeightCategory:
    module = match.place.modules[-1]
    if match.place.owned in module.buffers:
        return "buffer"
    if match.parameter in QUANTIZED:
        return "weight" if match.parameter in {"qweight", "weight_packed"} else "buffer"
    if module.layer_type == "normalization":
        return "norm"
    if "bias" in {match.parameter, match.place.owned}:
        return "bias"
    return "embedding" if module.embedding else "weight"


def _dimensions(layer: Layer) -> tuple[int | None, int | None]:
    """Input and output width, from the first and the last matrix that data flows through."""
    if layer.module is None:
        return None, None
    shapes = [layer.weights[owned].shape for owned in layer.module.owns if owned in layer.weights]
    shapes = [shape for shape in shapes if shape]
    if layer.layer_type == "normalization":
        return (shapes[0][0], shapes[0][0]) if shapes else (None, None)
    matrices = [shape for shape in shapes if len(shape) >= _MATRIX]
    if not matrices:
        return None, None
    if layer.module.transposed or layer.module.embedding:
        return matrices[0][-2], matrices[-1][-1]
    return matrices[0][-1], matrices[-1][-2]


def _block_widths(ordered: list[Layer]) -> Mapping[str, int]:
    widths: dict[str, int] = {}
    for layer in ordered:
        if layer.layer_type == "attention" and layer.parent is not None:
            width = _dimensions(layer)[0]
            if width is not None:
                widths.setdefault(layer.parent.key, width)
    return widths
