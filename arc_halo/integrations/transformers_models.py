"""Models and tokenizers of transformers out of the database, without files of weights; the extra ``transformers``."""

from __future__ import annotations

import logging
from collections import Counter
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import transformers
from blake3 import blake3
from sqlalchemy import select
from sqlalchemy.orm import undefer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from arc_halo.errors import ConfigurationError, DigestMismatch, ModelFolderError, QuantizationError, StateMismatch
from arc_halo.formats.gguf import SUFFIX as GGUF_SUFFIX
from arc_halo.formats.strict_json import parse_object
from arc_halo.integrations.torch import load_state_dict
from arc_halo.integrations.torch_identity.contents import Held, hash_tensors
from arc_halo.integrations.torch_identity.identity import remember_registered
from arc_halo.integrations.torch_training.naming import some
from arc_halo.quantization import Description
from arc_halo.quantization.description import FIELD
from arc_halo.registry import find_model
from arc_halo.registry.exporting import CONFIG_NAME, export_side_files
from arc_halo.registry.forms import refuse_lasting_blocks, stored_forms
from arc_halo.registry.origins import without_origin
from arc_halo.registry.reading import weights_of
from arc_halo.schema import ModelFile
from arc_halo.store.manifest import explain_weights_digest

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import torch
    from sqlalchemy.orm import Session
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from arc_halo.schema import Model, ModelWeight

_log = logging.getLogger(__name__)

GENERATION_NAME: Final = "generation_config.json"
_CODE: Final = "auto_map"


def load_pretrained(
    session: Session,
    reference: Model | uuid.UUID | str,
    *,
    auto_class: Any = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    attn_implementation: str | None = None,
    strict: bool = True,
    dequantize: bool = False,
) -> PreTrainedModel:
    """A model of transformers with the weights that the database has, in evaluation mode.

    What ``from_pretrained`` makes of a folder that `export_model` writes, bit for bit, without that folder: names of
    older releases, prefixes and tied weights are treated by transformers itself. `identify` knows it as the version in
    the database until it is changed.

    Parameters
    ----------
    reference
        As in `find_model`.
    auto_class
        ``AutoModelForCausalLM`` and the like, or a class of models; by default the one that the config names, else
        ``AutoModel``.
    dtype
        Another type than the config's, or the stored one where that says nothing. A model that is converted is not the
        one in the database to `identify`.
    attn_implementation
        As in ``from_pretrained``.
    strict
        False to let heads be missing, which are then made at random, and to leave out stored ones that the class does
        not have. What is made at random is not the model in the database to `identify`.
    dequantize
        Give a quantised model's floats.

    Raises
    ------
    ModelNotFound
        There is no such model.
    ConfigurationError
        The installed transformers has no class for it: code of the model's own is never run.
    StateMismatch
        Weights are missing, left over, or of other shapes.
    QuantizationError
        It is quantised and ``dequantize`` was not said, or it is in blocks that cannot become floats.
    TensorError
        A tensor has a type that PyTorch does not.
    CorruptionError
        Stored bytes, or files, are not those that were written.

    Examples
    --------
    >>> model = load_pretrained(session, "minilm@production")  # doctest: +SKIP
    """
    found = find_model(session, reference)
    if (wrong := explain_weights_digest(session, found.id)) is not None:
        raise DigestMismatch(f"{found.name}@{found.version}: {wrong}; restore them from a copy")
    weights = weights_of(session, found)
    is_quantized = _refuse_unfit(session, found, weights, dequantize=dequantize)
    config = _config_of(session, found)
    chosen = _class_of(config, auto_class, found)
    state = load_state_dict(session, found, dequantize=dequantize)
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    module, report = chosen.from_pretrained(
        None,
        config=config,
        state_dict=dict(state),
        dtype="auto" if dtype is None else dtype,
        ignore_mismatched_sizes=True,  # to be told of them by the report, with the others
        output_loading_info=True,
        local_files_only=True,
        **options,
    )
    _check_report(module, report, found, strict=strict)
    module.name_or_path = module.config.name_or_path = ""  # transformers would ask the hub for it
    _set_generation(session, found, module)
    module.to(device)
    is_whole = not is_quantized and not report["missing_keys"]
    if is_whole and found.weights_digest is not None and _is_stored(module, state):
        remember_registered(module, found.id, found.weights_digest)
    return module


def load_tokenizer(session: Session, reference: Model | uuid.UUID | str, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer that was imported with a model.

    Its files stand in a temporary folder while transformers reads them.

    Parameters
    ----------
    options
        Further ones of ``AutoTokenizer.from_pretrained``.

    Raises
    ------
    ModelNotFound
        There is no such model.
    ConfigurationError
        It has no tokenizer files, or they ask for code of their own, which is never run.
    CorruptionError
        A file was changed in the database.

    Examples
    --------
    >>> load_tokenizer(session, "minilm@production")("Every model is a row.").input_ids  # doctest: +SKIP
    """
    found = find_model(session, reference)
    kinds = select(ModelFile.id).where(ModelFile.model_id == found.id, ModelFile.kind == "tokenizer").limit(1)
    if session.scalar(kinds) is None:
        raise ConfigurationError(f"{found.name}@{found.version} has no tokenizer files; import a folder with them")
    with TemporaryDirectory() as folder:
        export_side_files(session, found, folder)
        try:
            tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
                folder, **options, local_files_only=True, trust_remote_code=False
            )
        except (ImportError, OSError, ValueError) as error:
            raise ConfigurationError(
                f"transformers makes no tokenizer of the files of {found.name}@{found.version}: {error}"
            ) from error
    tokenizer.name_or_path = ""
    return tokenizer


def _refuse_unfit(session: Session, model: Model, weights: Sequence[ModelWeight], *, dequantize: bool) -> bool:
    """Refuse what transformers would take for something else; whether the model is quantised."""
    where = f"{model.name}@{model.version}"
    paths = select(ModelFile.path).where(ModelFile.model_id == model.id, ModelFile.kind == "weights")
    if any(path.endswith(GGUF_SUFFIX) for path in session.scalars(paths)):
        raise ConfigurationError(
            f"{where} is from a GGUF file, whose tensors have other names than those of transformers; "
            f"export it and give the file to from_pretrained as gguf_file, or import the model's safetensors"
        )
    if FIELD in model.architecture_config and Description.of(model.architecture_config) is None:
        raise QuantizationError(f"{where} was quantised by another tool; export it and load the folder with that one")
    if dequantize:
        refuse_lasting_blocks(model, weights)
    forms = stored_forms(model, weights)
    if forms and not dequantize:
        raise QuantizationError(
            f"{where} is quantised ({some(list(forms))}); say dequantize=True (on the command line "
            f"--dequantize) for its floats, or load the version it was made of"
        )
    return bool(forms)


def _config_of(session: Session, model: Model) -> Any:
    raw = _content(session, model, CONFIG_NAME)
    values = without_origin(model.architecture_config) if raw is None else parse_object(raw, CONFIG_NAME)
    where = f"{model.name}@{model.version}"
    values = {key: value for key, value in values.items() if key != FIELD}  # of what are floats by now
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        advice = "its own code, which is never run; install a release that has it" if _CODE in values else "no class"
        raise ConfigurationError(f"{where} is of type {kind!r}, for which transformers has {advice}")
    if values.pop(_CODE, None) is not None:
        _log.warning("%s names code of its own, which is never run: transformers' own %s is taken", where, kind)
    try:
        return CONFIG_MAPPING[kind].from_dict(values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelFolderError(f"{where}: transformers makes no config of {CONFIG_NAME}: {error}") from error


def _content(session: Session, model: Model, path: str) -> bytes | None:
    """A side file of a model; None if it has no such file."""
    statement = select(ModelFile).where(ModelFile.model_id == model.id, ModelFile.path == path)
    options = {"populate_existing": True}
    file = session.scalars(statement.options(undefer(ModelFile.content)), execution_options=options).one_or_none()
    if file is None:
        return None
    if blake3(file.content).digest() != file.digest:
        where = f"file {path!r} of {model.name}@{model.version}"
        raise DigestMismatch(f"{where} was changed in the database; restore it from a copy")
    return file.content


def _class_of(config: Any, auto_class: Any, model: Model) -> Any:
    where = f"{model.name}@{model.version}"
    if auto_class is None and (named := config.architectures):
        found = getattr(transformers, str(named[0]), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
        raise ConfigurationError(f"{where} names {named[0]!r}, which transformers does not have; give auto_class")
    auto_class = transformers.AutoModel if auto_class is None else auto_class
    if isinstance(auto_class, type) and issubclass(auto_class, transformers.PreTrainedModel):
        return auto_class
    mapping: Mapping[type, Any] | None = getattr(auto_class, "_model_mapping", None)
    if mapping is None or type(config) not in mapping:
        name = getattr(auto_class, "__name__", repr(auto_class))
        raise ConfigurationError(f"{where}: {name} has no class for {type(config).__name__}; give another auto_class")
    chosen = mapping[type(config)]
    return chosen[0] if isinstance(chosen, list | tuple) else chosen


def _check_report(module: PreTrainedModel, report: Mapping[str, Any], model: Model, *, strict: bool) -> None:
    """Compare what the class asks for with what is stored."""
    mismatched = {each[0] if isinstance(each, tuple) else each for each in report["mismatched_keys"]}
    is_refused = _nothing if strict else _is_no_head(module)
    found = [
        *_listed("missing in the database", filter(is_refused, report["missing_keys"])),
        *_listed("not in the class", filter(is_refused, report["unexpected_keys"])),
        *_listed("of another shape", mismatched),
        *map(str, report["error_msgs"]),
    ]
    if found:
        advice = "; strict=False leaves out heads" if strict else ""
        raise StateMismatch(
            f"{model.name}@{model.version} does not fit {type(module).__name__}: {'; '.join(found)}; give the "
            f"auto_class it was made for{advice}"
        )


def _listed(what: str, names: Iterable[str]) -> list[str]:
    listed = sorted(names)
    return [f"{len(listed)} {what}: {some(listed)}"] if listed else []


def _nothing(name: str) -> bool:
    return bool(name)


def _is_no_head(module: PreTrainedModel) -> Callable[[str], bool]:
    """What lies in the model that all classes of an architecture have in common, its pooler left aside."""
    prefix = f"{module.base_model_prefix}."
    own = {name.partition(".")[0] for name in module.base_model.state_dict()}

    def is_of_base(name: str) -> bool:
        inside = name.removeprefix(prefix)
        first = inside.partition(".")[0]
        return first != "pooler" and first in own if inside != name or module.base_model is module else False

    return is_of_base


def _set_generation(session: Session, model: Model, module: PreTrainedModel) -> None:
    raw = _content(session, model, GENERATION_NAME)
    if raw is not None and module.can_generate():
        parsed = parse_object(raw, GENERATION_NAME)
        module.generation_config = transformers.GenerationConfig.from_dict(parsed)


def _is_stored(module: PreTrainedModel, state: Mapping[str, torch.Tensor]) -> bool:
    """Whether every weight that computes is the stored one of its name, bit for bit, in whatever way that is spelt.

    None was converted, fused, made anew or put in another's place. Where no spelling is known, each has to be another
    one of those that are left.
    """
    stored, held = hash_tensors(dict(state)), Held.by(module).weights
    left, places, renamed = Counter(stored.values()), set(), {}
    for name, content in hash_tensors(held).items():
        spelt = next((each for each in _spellings(module, name) if each in stored), None)
        if spelt is None:
            renamed[name] = content
        elif stored[spelt] == content:
            left[content] -= 1
            places.add(_place(held[name]))
        else:
            return False
    for name, content in renamed.items():
        if _place(held[name]) in places:  # tied to one that was seen
            continue
        if left[content] < 1:
            return False
        left[content] -= 1
        places.add(_place(held[name]))
    return True


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    # Tensors without elements have no place, and are told by their shape.
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _spellings(module: PreTrainedModel, name: str) -> Iterator[str]:
    """A weight's name, and those that transformers has for it with and without a head, or had for it in norms."""
    prefix = f"{module.base_model_prefix}."
    for new, old in (("", ""), (".weight", ".gamma"), (".bias", ".beta")):
        if name.endswith(new):
            spelt = name.removesuffix(new) + old if new else name
            yield from (spelt, prefix + spelt, spelt.removeprefix(prefix))
