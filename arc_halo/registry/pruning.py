"""Models with fewer numbers as new versions: the smallest of them, rows or heads set to zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from arc_halo.dtypes import by_name
from arc_halo.errors import ConfigurationError, TensorError
from arc_halo.quantization import Deviation
from arc_halo.quantization.sparsity import Pattern, check_sparsity
from arc_halo.registry.deriving import Derivation, derive_model, refuse_names
from arc_halo.registry.masking import choose_heads, choose_numbers, choose_rows
from arc_halo.registry.matrices import listed, select_matrices, wanted_of
from arc_halo.registry.naming import find_model
from arc_halo.registry.reading import weights_of
from arc_halo.registry.streaming import Spool, read_blocks
from arc_halo.store import Meter

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.codecs.policy import PolicyName
    from arc_halo.quantization.sparsity import Pruner
    from arc_halo.registry.matrices import Patterns
    from arc_halo.registry.streaming import SpooledTensor
    from arc_halo.schema import Model, ModelWeight
    from arc_halo.store import Progress

Scope = Literal["tensor", "model"]
Structure = Literal["rows", "heads"]


def prune_model(
    session: Session,
    model: Model | uuid.UUID | str,
    sparsity: float | None = None,
    *,
    structured: Structure | None = None,
    pattern: str | None = None,
    scope: Scope = "tensor",
    name: str | None = None,
    version: str | None = None,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    compression: PolicyName = "balanced",
    progress: Progress | None = None,
) -> Model:
    """Make a version of a model in which the numbers that matter least are zero.

    Shapes and types stay, so the new version is used as the model is. It shares with the model what is not pruned;
    its lineage says for each tensor which share is zero now, and how far it moved. Tensors are read several times, in
    blocks of rows; what comes of them waits in a temporary file (in ``TMPDIR``), not in memory.

    Parameters
    ----------
    sparsity
        The share that is to be zero, between 0 and 1; zeros that are there count. Single numbers of the smallest
        magnitude go, unless ``structured`` says otherwise.
    structured
        ``"rows"``: whole rows of the smallest Euclidean norm, the outputs of a linear map; of GPT-2's, which are
        stored the other way round, the inputs. ``"heads"``: whole attention heads, by the norm of what is theirs of
        the four projections; keys and values that heads share go when all of those heads go. Biases stay: a head adds
        nothing any more, because its columns of the output projection are zero.
    pattern
        In place of a sparsity: of ``"2:4"`` at most 2 of every 4 numbers along the last axis stay, in each tensor.
    scope
        Whether each tensor (for heads, each layer) gets that sparsity, or all of them together: then the smallest
        of the whole model go, rows by their root mean square.
    name, version, include, exclude, compression
        As in `quantize_model`. Heads are pruned in those layers of which all four projections are included.

    Raises
    ------
    ModelNotFound, ModelExists
        There is no such model, or the version is taken.
    ConfigurationError
        The sparsity is not between 0 and 1, or stands beside a pattern; there is no such structure, pattern or scope.
    TensorNotFound
        There is nothing to prune.
    TensorError
        Rows of a tensor are not made of whole groups of the pattern.

    Examples
    --------
    >>> prune_model(session, "minilm", 0.5).version  # doctest: +SKIP
    '2'
    """
    fixed = None if pattern is None else Pattern.of(pattern)
    wanted = _wanted(sparsity, structured, fixed, scope)
    origin = find_model(session, model)
    target = origin.name if name is None else name
    refuse_names(session, target, version)
    selection = select_matrices(session, origin, weights_of(session, origin), include, exclude)
    recipe: dict[str, Any] = {
        "sparsity": wanted,
        "structured": structured,
        "pattern": pattern,
        "scope": scope,
        "include": listed(include),
        "exclude": listed(exclude),
    }
    with Spool() as spool, session.begin_nested():
        pruners: Mapping[str, Pruner]
        if fixed is not None:
            pruners = dict.fromkeys((each.name for each in selection.weights), fixed)
        elif structured == "heads":
            across = scope == "model"
            heads = choose_heads(session, origin, selection.weights, wanted, across=across, progress=progress)
            pruners = heads.masks
            recipe["heads"] = heads.pruned
        else:
            pruners = _pruners(
                session, selection.weights, wanted, structured=structured, scope=scope, progress=progress
            )
        chosen = [each for each in selection.weights if each.name in pruners]
        meter = Meter(progress, "prune", sum(each.tensor.nbytes for each in chosen))
        made = {each.name: _prune(session, each, pruners[each.name], spool, meter) for each in chosen}
        recipe |= {
            "not_finite": list(selection.not_finite),
            "tensors": {name: figures for name, (_, figures) in made.items()},
        }
        derivation = Derivation("prune", recipe, {name: tensor for name, (tensor, _) in made.items()})
        return derive_model(
            session, origin, derivation, name=target, version=version, compression=compression, progress=progress
        )


def _wanted(sparsity: float | None, structured: str | None, pattern: Pattern | None, scope: str) -> float:
    """The share that is to be zero, after what does not go together was refused."""
    if scope not in ("tensor", "model"):
        raise ConfigurationError(f"{scope!r} is no scope; give tensor or model")
    if structured not in (None, "rows", "heads"):
        raise ConfigurationError(f"{structured!r} is no structure; give rows or heads, or a pattern such as 2:4")
    if pattern is None:
        if sparsity is None:
            raise ConfigurationError("how much is to be pruned? give a sparsity between 0 and 1, or a pattern")
        check_sparsity(sparsity)
        return sparsity
    if structured is not None:
        raise ConfigurationError(f"a pattern is of single numbers, not of {structured}; give one of the two")
    if sparsity is not None:
        raise ConfigurationError(f"a pattern makes a sparsity of its own, here {pattern.sparsity:g}; leave yours out")
    if scope == "model":
        raise ConfigurationError("a pattern is the same in each tensor; the scope of a model is for others")
    return pattern.sparsity


def _pruners(
    session: Session,
    weights: Sequence[ModelWeight],
    sparsity: float,
    *,
    structured: Structure | None,
    scope: Scope,
    progress: Progress | None,
) -> dict[str, Pruner]:
    """What prunes each tensor, decided over groups of tensors that have the sparsity together."""
    choose, passes = (choose_rows, 1) if structured == "rows" else (choose_numbers, 2)
    meter = Meter(progress, "measure", passes * sum(weight.tensor.nbytes for weight in weights))
    groups = [weights] if scope == "model" else [[weight] for weight in weights]
    return {name: each for group in groups for name, each in choose(session, group, sparsity, meter).items()}


def _prune(
    session: Session, weight: ModelWeight, pruner: Pruner, spool: Spool, meter: Meter
) -> tuple[SpooledTensor, dict[str, Any]]:
    """The pruned tensor, and what that cost."""
    pruned_tensor = spool.tensor(weight.name, by_name(weight.tensor.dtype), tuple(weight.tensor.shape))
    deviation, zeros, first_row = Deviation(), 0, 0
    for (block,) in read_blocks(session, wanted_of(weight)):
        try:
            pruned = pruner.prune(block, first_row)
        except TensorError as error:
            raise TensorError(f"tensor {weight.name!r}: {error}; leave it out by a pattern to include") from error
        pruned_tensor.append(pruned)
        deviation.add(block, pruned)
        zeros += pruned.size - int(np.count_nonzero(pruned))
        first_row += len(block)
        meter.add(block.nbytes)
    return pruned_tensor, {"zero_fraction": zeros / weight.tensor.element_count} | deviation.figures()
