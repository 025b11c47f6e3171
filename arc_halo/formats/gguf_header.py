"""The header of a GGUF file: its grammar, what makes it valid, and the places of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING

from arc_halo.dtypes import DType, by_name
from arc_halo.errors import GGUFError
from arc_halo.formats.gguf_values import MIN_ENTRY_NBYTES, HeaderReader, Value, read_value
from arc_halo.formats.safetensors_header import name_problem
from arc_halo.formats.weights_file import TensorEntry, in_data_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32
MIN_ALIGNMENT = 8
MAX_ALIGNMENT = 1 << 16  # a page, on any system there is
MAX_RANK = 4
# More than any model has; without a bound, entries of a few bytes each would take many times the header's memory.
MAX_METADATA = 1 << 16
MAX_TENSORS = 1 << 17
MAX_KEY_NBYTES = (1 << 16) - 1

_MAX_INTEGER = (1 << 63) - 1  # sizes are bigint in the database
_MIN_TENSOR_NBYTES = 8 + 1 + 4 + 4 + 8  # a name of one letter, no dimensions, type, offset
_FETCH = "fetch the file again"

TYPE_NAMES = MappingProxyType(
    {
        0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
        12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
        20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
        29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
    }
)  # fmt: skip
"""Names of ggml's types by their numbers; the numbers between were withdrawn."""


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """What a header says.

    Attributes
    ----------
    content
        The file's bytes up to the first tensor's; all of them where there is no tensor.
    end
        Where the header ends and the padding before the first tensor begins.
    metadata
        Values by key; arrays stay in ``content``.
    tensors
        By name, in the header's order. Shapes are in row-major order, the reverse of the file's.
    """

    content: bytes
    end: int
    version: int
    alignment: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorEntry]


def parse_header(read: Callable[[int, int], bytes], file_nbytes: int, where: str) -> GGUFHeader:
    """Parse a header and check that its tensors fill the rest of the file, with nothing but padding between them.

    Read and checked from the front, piece by piece: a count or a length is compared with what is left of the file
    before anything is allocated for it, or any loop begins.

    Parameters
    ----------
    read
        Gives bytes of the file, by offset and number; fewer only where the file, or what is known of it, ends.
    file_nbytes
        Size of the file.
    where
        The file's name, for messages.

    Raises
    ------
    GGUFError
        The header breaks the format, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, is of another version
        than 2 or 3 or big-endian, or is outside what any model needs.
    """
    reader = HeaderReader(read, file_nbytes, where)
    version = _read_version(reader)
    tensor_count, metadata_count = reader.u64("the number of tensors"), reader.u64("the number of metadata entries")
    reader.expect_items(metadata_count, MIN_ENTRY_NBYTES, "metadata entries", MAX_METADATA)
    reader.expect_items(tensor_count, _MIN_TENSOR_NBYTES, "tensors", MAX_TENSORS)
    metadata: dict[str, Value] = {}
    for _ in range(metadata_count):
        key = _read_key(reader)
        if key in metadata:
            reader.refuse(f"key {key!r:.80} stands twice")
        metadata[key] = read_value(reader, key)
    alignment = _alignment(reader, metadata)
    tensors: dict[str, TensorEntry] = {}
    for _ in range(tensor_count):
        entry = _read_tensor(reader, alignment)
        if entry.name in tensors:
            reader.refuse(f"tensor {entry.name!r:.80} stands twice")
        tensors[entry.name] = entry
    data_start = aligned(reader.position, alignment)
    tensors = {name: entry._replace(offset=data_start + entry.offset) for name, entry in tensors.items()}
    _check_places(tensors, reader.position, alignment, file_nbytes, where)
    content = reader.content(min(data_start, file_nbytes))
    return GGUFHeader(
        content, reader.position, version, alignment, MappingProxyType(metadata), MappingProxyType(tensors)
    )


def parse_stored(content: bytes, file_nbytes: int, where: str) -> GGUFHeader:
    """Parse the ``content`` of a header whose file is not there, knowing how long that was."""
    return parse_header(lambda offset, nbytes: content[offset : offset + nbytes], file_nbytes, where)


def gaps(header: GGUFHeader, file_nbytes: int) -> Iterator[tuple[int, int]]:
    """Offset and length of each piece of padding behind the header: between tensors, and after the last."""
    ordered = in_data_order(header.tensors)
    ends = [header.end, *(entry.offset + entry.nbytes for entry in ordered)]
    begins = [*(entry.offset for entry in ordered), file_nbytes]
    for end, begin in zip(ends, begins, strict=True):
        if begin > end:
            yield end, begin - end


def aligned(offset: int, alignment: int) -> int:
    """The next multiple of the alignment, a power of two."""
    return (offset + alignment - 1) & -alignment


def _read_version(reader: HeaderReader) -> int:
    magic = reader.raw(len(MAGIC), "the magic number")
    if magic != MAGIC:
        reader.refuse(f"it begins with {magic!r} where a GGUF file has {MAGIC!r}")
    version = reader.u32("the version")
    if version and not version & 0xFFFF:
        reader.refuse("it is big-endian", "convert it with gguf-convert-endian of the gguf package")
    if version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        reader.refuse(f"version {version} is not known, only {known} are", "convert the model again with llama.cpp")
    return version


def _read_key(reader: HeaderReader) -> str:
    key = reader.text("a key", MAX_KEY_NBYTES)
    if not key or not key.isprintable():
        reader.refuse(f"key {key!r:.80} is empty or cannot be printed")
    return key


def _alignment(reader: HeaderReader, metadata: Mapping[str, Value]) -> int:
    alignment = metadata.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment.bit_count() != 1 or not MIN_ALIGNMENT <= alignment <= MAX_ALIGNMENT:
        reader.refuse(f"{ALIGNMENT_KEY} is {alignment!r:.80}, no power of two from {MIN_ALIGNMENT} to {MAX_ALIGNMENT}")
    return alignment


def _read_tensor(reader: HeaderReader, alignment: int) -> TensorEntry:
    """A tensor with its offset as the file has it, from the start of the data."""
    name = reader.text("a tensor's name")
    if problem := name_problem(name):
        reader.refuse(f"tensor name {name!r:.80} {problem}")
    rank = reader.u32(f"the rank of {name!r:.80}")
    if rank > MAX_RANK:
        reader.refuse(f"tensor {name!r:.80} has {rank} dimensions, the format allows {MAX_RANK}")
    shape = tuple(reversed([reader.u64(f"a dimension of {name!r:.80}") for _ in range(rank)]))
    type_id = reader.u32(f"the type of {name!r:.80}")
    if type_id not in TYPE_NAMES:
        reader.refuse(f"tensor {name!r:.80} has unknown type {type_id}; known are {', '.join(TYPE_NAMES.values())}")
    dtype = by_name(TYPE_NAMES[type_id])
    nbytes = _nbytes(reader, name, dtype, shape)
    offset = reader.u64(f"the offset of {name!r:.80}")
    if offset % alignment or offset > _MAX_INTEGER - nbytes:
        reader.refuse(f"tensor {name!r:.80} at offset {offset} is not at a multiple of {alignment} inside any file")
    return TensorEntry(name, dtype, shape, offset, nbytes)


def _nbytes(reader: HeaderReader, name: str, dtype: DType, shape: tuple[int, ...]) -> int:
    # A zero among the dimensions hides any other from their product, but not from whoever allocates by them.
    if prod(filter(None, shape)) * dtype.bits > _MAX_INTEGER * 8:
        reader.refuse(f"shape of {name!r:.80} is beyond 2**63 - 1 bytes: {list(shape)}")
    if (shape[-1] if shape else 1) % dtype.block_elements:
        reader.refuse(
            f"rows of tensor {name!r:.80}, {list(shape)}, are no whole blocks: {dtype.name} has {dtype.block_elements}"
        )
    nbytes = dtype.nbytes(prod(shape))
    assert nbytes is not None  # rows of whole blocks, and no type here is narrower than a byte
    return nbytes


def _check_places(
    tensors: Mapping[str, TensorEntry], header_end: int, alignment: int, file_nbytes: int, where: str
) -> None:
    """Refuse tensors that do not stand one after the other, padded to the alignment, up to the end of the file."""
    end, filled, before = header_end, aligned(header_end, alignment), "the header"
    for entry in in_data_order(tensors):
        if entry.offset != filled:
            relation = "overlaps" if entry.offset < filled else "leaves a hole after"
            raise GGUFError(
                f"{where}: tensor {entry.name!r:.80} at byte {entry.offset} {relation} {before}, "
                f"which ends at {end}, padded {filled}; write the file again with the gguf package"
            )
        end, before = entry.offset + entry.nbytes, repr(entry.name)[:80]
        filled = aligned(end, alignment)
        if end > file_nbytes:
            raise GGUFError(
                f"{where}: tensor {before} ends at byte {end}, the file at {file_nbytes}: it is cut short; {_FETCH}"
            )
    if file_nbytes > filled:
        raise GGUFError(
            f"{where}: {file_nbytes - filled} bytes follow {before}, which ends at {end}, padded {filled}; {_FETCH}"
        )
