"""Models of fewer bits as new versions, with the error of each tensor measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from arc_halo import quantization
from arc_halo.dtypes import by_name
from arc_halo.errors import QuantizationError, TensorError
from arc_halo.quantization import Description, Deviation, QuantizedTensor
from arc_halo.quantization.abc import SCALE_DTYPE
from arc_halo.quantization.description import FIELD, SCALE_SUFFIX
from arc_halo.registry.deriving import Derivation, derive_model, read_config, refuse_names, tie_roots
from arc_halo.registry.matrices import listed, select_matrices, wanted_of
from arc_halo.registry.naming import find_model
from arc_halo.registry.reading import weights_of
from arc_halo.registry.streaming import Spool, read_blocks
from arc_halo.store import Meter

if TYPE_CHECKING:
    import uuid
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from arc_halo.codecs.policy import PolicyName
    from arc_halo.quantization import Scheme
    from arc_halo.registry.matrices import Patterns
    from arc_halo.registry.streaming import SpooledTensor
    from arc_halo.schema import Model, ModelWeight
    from arc_halo.store import Progress

SchemeName = Literal["int8", "nf4", "fp8"]


def quantize_model(
    session: Session,
    model: Model | uuid.UUID | str,
    scheme: SchemeName = "int8",
    *,
    name: str | None = None,
    version: str | None = None,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    compression: PolicyName = "balanced",
    progress: Progress | None = None,
) -> Model:
    """Make a version of a model whose matrices are codes of 8 or 4 bits.

    Codes take the name of the tensor that they stand for, scales the same with ``_scale`` behind it; the new version's
    config says in ``quantization_config`` how they are read. Everything else is shared with the model, whose lineage
    says how far each tensor moved: the largest difference, its root mean square, the cosine, the relative distance.

    Tensors are read in blocks of rows. What comes of them waits in a temporary file (in ``TMPDIR``), not in memory.

    Parameters
    ----------
    scheme
        ``int8``: integers with a scale for each row. ``fp8``: E4M3 with a scale for each row. ``nf4``: the 4 bits of
        QLoRA, in blocks of 64.
    name, version
        Of the new version; by default the model's name and the next number.
    include
        A shell pattern over names of matrices, or several; by default the linear maps of attention and feed-forward.
        Embeddings, the output's head and routers are quantised only where a pattern says so, norms and biases never.
        Tensors that hold NaN or infinity stay as they are.
    exclude
        Patterns of those that are to stay as they are, too.
    compression
        The lossless policy that the new tensors are stored under.

    Raises
    ------
    ModelNotFound, ModelExists
        There is no such model, or the version is taken.
    QuantizationError
        The model is quantised already.
    TensorNotFound
        There is nothing to quantise.

    Examples
    --------
    >>> quantize_model(session, "minilm", "int8").version  # doctest: +SKIP
    '2'
    """
    origin = find_model(session, model)
    chosen = quantization.scheme(scheme)
    target = origin.name if name is None else name
    refuse_names(session, target, version)
    config = read_config(session, origin)
    if config.get(FIELD) is not None:
        raise QuantizationError(f"{origin.name}@{origin.version} is quantised already; dequantize it first")
    weights = weights_of(session, origin)
    selection = select_matrices(session, origin, weights, include, exclude)
    _refuse_scales(origin, weights)
    with Spool() as spool, session.begin_nested():
        made = _Made()
        meter = Meter(progress, "quantize", sum(each.tensor.nbytes for each in selection.weights))
        for weight in selection.weights:
            _quantize(session, weight, chosen, spool, made)
            meter.add(weight.tensor.nbytes)
        recipe = {
            "scheme": scheme,
            "include": listed(include),
            "exclude": listed(exclude),
            "not_finite": list(selection.not_finite),
            **_sizes(weights, made),
            "tensors": made.figures,
        }
        described = Description(scheme, _described(weights, made)).added_to(config)
        derivation = Derivation("quantize", recipe, made.codes, made.scales, trainable=False, config=described)
        return derive_model(
            session, origin, derivation, name=target, version=version, compression=compression, progress=progress
        )


@dataclass(slots=True)
class _Made:
    """What came of the tensors quantised so far, by their names."""

    codes: dict[str, SpooledTensor] = field(default_factory=dict)
    scales: dict[str, SpooledTensor] = field(default_factory=dict)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)


def _quantize(session: Session, weight: ModelWeight, scheme: Scheme, spool: Spool, made: _Made) -> None:
    shape = tuple(weight.tensor.shape)
    codes = spool.tensor(weight.name, scheme.codes_dtype, scheme.codes_shape(shape))
    scales = spool.tensor(weight.name + SCALE_SUFFIX, SCALE_DTYPE, scheme.scale_shape(shape))
    deviation = Deviation()
    for (block,) in read_blocks(session, wanted_of(weight)):
        try:
            quantized = scheme.quantize(block)
        except TensorError as error:
            raise TensorError(f"tensor {weight.name!r}: {error}") from error
        codes.append(quantized.codes)
        scales.append(quantized.scale)
        deviation.add(block, scheme.dequantize(quantized, block.shape))
    made.codes[weight.name], made.scales[weight.name] = codes, scales
    sizes = {"nbytes_before": weight.tensor.nbytes, "nbytes_after": codes.nbytes + scales.nbytes}
    made.figures[weight.name] = sizes | deviation.figures()


def _refuse_scales(origin: Model, weights: Sequence[ModelWeight]) -> None:
    names = {weight.name for weight in weights}
    taken = [each.name for each in weights if each.name + SCALE_SUFFIX in names]
    if taken:
        raise QuantizationError(
            f"{origin.name}@{origin.version} has scales for {taken[0]!r}: it is quantised already, in a way its config "
            f"does not describe"
        )


def _sizes(weights: Sequence[ModelWeight], made: _Made) -> dict[str, int]:
    before = sum(each.tensor.nbytes for each in weights if each.tied_to_id is None)
    saved = sum(each["nbytes_before"] - each["nbytes_after"] for each in made.figures.values())
    return {"nbytes_before": before, "nbytes_after": before - saved}


def _described(weights: Sequence[ModelWeight], made: _Made) -> dict[str, QuantizedTensor]:
    roots = tie_roots(weights)
    return {
        each.name: QuantizedTensor(
            each.name, made.scales[roots[each.name].name].name, by_name(each.tensor.dtype), tuple(each.tensor.shape)
        )
        for each in weights
        if roots[each.name].name in made.codes
    }
