"""PyTorch tensors in and out of models, without copies through another type; the extra ``torch``."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np
import torch

from arc_halo.dtypes import by_name, of_array
from arc_halo.errors import TensorError
from arc_halo.registry import create_model, find_model, iter_tensors
from arc_halo.registry.reading import choose_tensors, weights_of

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Mapping

    from sqlalchemy.orm import Session

    from arc_halo.codecs.policy import PolicyName
    from arc_halo.registry.bases import BaseChoice
    from arc_halo.schema import Model
    from arc_halo.store import Progress

# Types that numpy does not have travel as integers of their width: the bits are the same.
_THROUGH: Final = MappingProxyType(
    {
        torch.bfloat16: (torch.int16, ml_dtypes.bfloat16),
        torch.float8_e4m3fn: (torch.uint8, ml_dtypes.float8_e4m3fn),
        torch.float8_e5m2: (torch.uint8, ml_dtypes.float8_e5m2),
        torch.float8_e4m3fnuz: (torch.uint8, ml_dtypes.float8_e4m3fnuz),
        torch.float8_e5m2fnuz: (torch.uint8, ml_dtypes.float8_e5m2fnuz),
        torch.float8_e8m0fnu: (torch.uint8, ml_dtypes.float8_e8m0fnu),
    }
)
_BACK: Final = MappingProxyType({np.dtype(kind): (integer, dtype) for dtype, (integer, kind) in _THROUGH.items()})


def load_state_dict(
    session: Session,
    model: Model | uuid.UUID | str,
    *,
    names: Iterable[str] | None = None,
    device: torch.device | str = "cpu",
    dequantize: bool = False,
) -> dict[str, torch.Tensor]:
    """The tensors of a model, as ``Module.load_state_dict`` takes them.

    On the CPU they lie in the memory they were decoded into. Tied weights are one tensor under several names.

    Parameters
    ----------
    names
        Which tensors; all by default.
    dequantize
        As in `iter_tensors`: floats for a module of floats. By default codes are given as they are, which a module
        would take for numbers.

    Raises
    ------
    ModelNotFound, TensorNotFound
        There is no such model or tensor.
    TensorError
        A tensor has a type that PyTorch does not: packed elements or blocks.
    CorruptionError
        Stored bytes are not those that were written.

    Examples
    --------
    >>> module.load_state_dict(load_state_dict(session, "minilm@production"))  # doctest: +SKIP
    """
    found = find_model(session, model)
    weights = {weight.name: weight for weight in weights_of(session, found)}
    asked, forms = choose_tensors(found, weights, names, dequantize=dequantize)
    # What is tied is read once, under the first name that was asked for.
    first: dict[object, str] = {}
    root = {name: weights[name].tied_to_id or weights[name].id for name in asked}
    read = [name for name in asked if first.setdefault(root[name], name) == name]
    for name in root:
        if name not in forms and by_name(weights[name].tensor.dtype).numpy is None:
            raise TensorError(
                f"tensor {name!r} is {weights[name].tensor.dtype}, which PyTorch does not have; load its floats by "
                f"dequantize=True, or a version that dequantize_model made of the model"
            )
    arrays = iter_tensors(session, found, read, dequantize=dequantize)
    tensors = {name: from_numpy(array, name).to(device) for name, array in arrays}
    return {name: tensors[first[root[name]]] for name in asked}


def save_state_dict(
    session: Session,
    name: str,
    config: Mapping[str, Any],
    state_dict: Mapping[str, torch.Tensor],
    *,
    version: str | None = None,
    compression: PolicyName = "balanced",
    base: BaseChoice = "auto",
    progress: Progress | None = None,
) -> Model:
    """Make a new version of a model from a module's state; parameters and errors are those of `create_model`.

    Contiguous tensors on the CPU are stored from where they are; others are copied first, one after another.

    Raises
    ------
    TensorError
        A tensor is sparse, quantised by PyTorch, or without storage (device ``meta``).

    Examples
    --------
    >>> save_state_dict(session, "minilm", config.to_dict(), module.state_dict())  # doctest: +SKIP
    """
    arrays = {tensor_name: to_numpy(tensor, tensor_name) for tensor_name, tensor in state_dict.items()}
    return create_model(
        session, name, config, arrays, version=version, compression=compression, base=base, progress=progress
    )


def to_numpy(tensor: torch.Tensor, name: str = "") -> np.ndarray:
    """An array over a tensor's own memory where that is contiguous and on the CPU, else over a copy.

    bfloat16 and float8 become the types of ``ml_dtypes``, every bit as it is.

    Raises
    ------
    TensorError
        The tensor has no plain strided memory, or a type that cannot be stored.
    """
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = (
            "on the meta device" if tensor.is_meta else str(tensor.layout if not tensor.is_quantized else tensor.dtype)
        )
        raise TensorError(f"tensor {name!r} is {kind}; give a dense tensor, `to_dense()` or `dequantize()` makes one")
    dense = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    if dense.dtype in _THROUGH:
        integer, kind = _THROUGH[dense.dtype]
        viewed: np.ndarray = dense.view(integer).numpy().view(kind)
        return viewed
    try:
        array: np.ndarray = dense.numpy()
    except TypeError as error:
        raise TensorError(f"tensor {name!r} of {dense.dtype} has no counterpart in numpy; convert it first") from error
    of_array(array)
    return array


def from_numpy(array: np.ndarray, name: str = "") -> torch.Tensor:
    """A tensor over an array's memory, the inverse of `to_numpy`.

    Raises
    ------
    TensorError
        PyTorch has no such type.
    """
    native = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    if native.dtype in _BACK:
        integer, dtype = _BACK[native.dtype]
        through = {torch.int16: np.int16, torch.uint8: np.uint8}[integer]
        return torch.from_numpy(native.view(through)).view(dtype)
    try:
        tensor: torch.Tensor = torch.from_numpy(native)
    except TypeError as error:
        raise TensorError(f"tensor {name!r} of {array.dtype} has no counterpart in PyTorch") from error
    return tensor
