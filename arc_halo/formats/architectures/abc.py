"""How a family of architectures is declared: the tree of its modules, in the names its tensors have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from arc_halo.formats.architectures.description import EmbeddingKind, LayerType

NUMBER = "#"
_NUMBER_DIGITS = 10

# The last part of a tensor's name, after the module that owns it. gamma and beta are the norms of old BERT files;
# the others are the parts of a quantised linear layer.
PARAMETERS = frozenset({"weight", "bias", "gamma", "beta"})
QUANTIZED = frozenset(
    {
        "qweight", "qzeros", "scales", "g_idx", "weight_scale", "weight_scale_inv", "weight_zero_point",
        "weight_packed", "weight_shape", "input_scale", "SCB",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Projections:
    """Where an attention module keeps Q, K, V and O.

    Roles that name the same tensor are fused in it, in this order, along its output axis.
    """

    query: str
    key: str
    value: str
    output: str


@dataclass(frozen=True, slots=True)
class Module:
    """A node of a family's layer tree.

    Attributes
    ----------
    name
        Last part of the layer's key; ``#`` stands for a number.
    owns
        Paths below the module of the tensors, or of the linear maps, that belong to this layer itself, in the order
        data flows through them; an empty path is the module's own ``weight`` and ``bias``.
    path
        Where the module's names stand below its parent's, when that is not ``name``.
    transposed
        Matrices are [input, output], as in GPT-2's Conv1D, and not [output, input].
    buffers
        Those of its tensors that are no parameters.
    """

    name: str
    layer_type: LayerType
    owns: tuple[str, ...] = ("",)
    children: tuple[Module, ...] = ()
    path: str | None = None
    transposed: bool = False
    buffers: tuple[str, ...] = ()
    projections: tuple[Projections, ...] = ()
    embedding: EmbeddingKind | None = None
    role: str | None = None


def norm(name: str) -> Module:
    """Declare a normalisation layer."""
    return Module(name, "normalization")


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's place in a family's tree: the modules from the root, and the path that the last of them owns."""

    modules: tuple[Module, ...]
    order: tuple[int, ...]
    owned: str


@dataclass(frozen=True, slots=True)
class Match:
    """A name that was found in a tree: its place, the numbers in it, its last part (``weight``, ...), its prefix."""

    place: Place
    numbers: tuple[str, ...]
    parameter: str
    prefix: str


@dataclass(slots=True)
class _Node:
    children: dict[str, _Node] = field(default_factory=dict)
    place: Place | None = None

    def descend(self, path: Iterable[str]) -> _Node:
        node = self
        for part in path:
            node = node.children.setdefault(part, _Node())
        return node


class NameTree:
    """The names that a module tree allows, as a trie: a look-up costs the length of the name."""

    def __init__(self, modules: tuple[Module, ...], first: int = 0) -> None:
        self._root = _Node()
        for ordinal, module in enumerate(modules, first):
            self._add(self._root, module, (), (ordinal,))

    def _add(self, parent: _Node, module: Module, above: tuple[Module, ...], order: tuple[int, ...]) -> None:
        chain = (*above, module)
        node = parent.descend(_parts(module.name if module.path is None else module.path))
        for owned in (*module.owns, *module.buffers):
            node.descend(_parts(owned)).place = Place(chain, order, owned)
        for ordinal, child in enumerate(module.children):
            self._add(node, child, chain, (*order, ordinal))

    def find(self, name: str, prefix: str) -> Match | None:
        """Find the place of a tensor's name after a prefix; None if the tree has no such name."""
        if not name.startswith(prefix):
            return None
        node, numbers = self._root, []
        *path, last = name[len(prefix) :].split(".")
        for part in path:
            if module_number(part) is not None:
                numbers.append(part)
                part = NUMBER  # noqa: PLW2901  # from here on a number is the tree's own sign for it
            elif part == NUMBER:
                return None
            child = node.children.get(part)
            if child is None:
                return None
            node = child
        owner = node.children.get(last)
        if owner is not None and owner.place is not None:
            return Match(owner.place, tuple(numbers), "", prefix)
        if node.place is not None and (last in PARAMETERS or last in QUANTIZED):
            return Match(node.place, tuple(numbers), last, prefix)
        return None


def module_number(part: str) -> int | None:
    """Read a part of a name as a module's number; None if it is none.

    Only as ``str`` writes it (7 and 007 would be two modules with one number), and below 2^31.
    """
    if not (part.isascii() and part.isdecimal() and len(part) < _NUMBER_DIGITS):
        return None
    return int(part) if part == "0" or part[0] != "0" else None


def _parts(path: str) -> list[str]:
    return path.split(".") if path else []


@dataclass(frozen=True)
class Family:
    """A naming scheme shared by many model types.

    Attributes
    ----------
    anchors
        Tensors that every model of the family has (one of them at least). What precedes an anchor in a file's names
        is the file's prefix: ``bert.``, ``model.``, ``model.language_model.`` or nothing.
    body, outer
        The modules whose names carry that prefix, and those whose names never do.
    heads, kv_heads, head_dim, blocks
        Fields of config.json.
    ties
        (tensor, the tensor whose storage it shares when the config ties embeddings); ``~`` is the prefix.
    tied_model_types
        The model types that tie embeddings unless the config says otherwise; None: all.
    """

    name: str
    anchors: tuple[str, ...]
    body: tuple[Module, ...]
    outer: tuple[Module, ...]
    ties: tuple[tuple[str, str], ...]
    heads: str = "num_attention_heads"
    kv_heads: str = "num_key_value_heads"
    head_dim: str = "head_dim"
    blocks: str = "num_hidden_layers"
    tied_model_types: frozenset[str] | None = None
    body_names: NameTree = field(init=False, repr=False)
    outer_names: NameTree = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "body_names", NameTree(self.body))
        object.__setattr__(self, "outer_names", NameTree(self.outer, first=len(self.body)))

    def prefix(self, names: Collection[str]) -> str | None:
        """What precedes the family's names in these names; None when no anchor is among them."""
        for anchor in self.anchors:
            prefixes = [name.removesuffix(anchor) for name in names if name.endswith(anchor)]
            prefixes = [prefix for prefix in prefixes if not prefix or prefix.endswith(".")]
            if prefixes:
                return min(prefixes, key=len)
        return None

    def find(self, name: str, prefix: str) -> Match | None:
        """Find the place of a tensor's name in the family's tree."""
        return self.body_names.find(name, prefix) or self.outer_names.find(name, "")
