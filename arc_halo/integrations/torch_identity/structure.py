"""What a module computes beside its weights: configs, classes and settings of its parts, as canonical JSON."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import logging
import re
import threading
import types
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from blake3 import blake3
from torch.nn.modules import module as module_hooks

from arc_halo.errors import CacheError
from arc_halo.integrations.torch_identity.tokenizers import tokenizer_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

# Of a config: where it came from, how answers are packed, and what its type or the module says better.
_COSMETIC_KEYS: Final = frozenset(
    {
        "_arc_halo_origin",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "auto_map",
        "dtype",
        "finetuning_task",
        "id2label",
        "label2id",
        "name_or_path",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
# Of a module of transformers: what loading, saving and distributing it leave behind. Of torch's RNNs: references to
# their parameters.
_COSMETIC_ATTRIBUTES: Final = frozenset(
    {
        "_ep_plan",
        "_flat_weight_refs",
        "_fsdp_plan",
        "_is_hf_initialized",
        "_output_capturing_hooks_installed",
        "_pp_plan",
        "_tp_plan",
        "_use_kernels",
        "_weight_conversions",
        "all_tied_weights_keys",
        "generation_config",
        "loss_type",
        "name_or_path",
        "warnings_issued",
    }
)
OF_ANY_MODULE: Final = frozenset(vars(torch.nn.Module())) - {"training"}
# They copy what passes by: transformers leaves them on a module that was once asked for its attentions, and ours are
# there while another thread computes.
_CAPTURING: Final = frozenset(
    {"transformers.utils.output_capturing", "arc_halo.integrations.torch_activations.capturing"}
)
_ADVICE: Final = "remove it, or say allow_hooks=True if it changes no result"
# What they print is what they are.
_PRINTED: Final = (bytes, complex, range, slice, types.EllipsisType, np.dtype, PurePath, re.Pattern)
_SCALARS: Final = frozenset({bool, float, int, str, type(None)})
_OF_TORCH: Final = (torch.dtype, torch.device, torch.layout, torch.memory_format)
# They change no result.
_COSMETIC: Final = (logging.Logger, type(threading.Lock()), type(threading.RLock()))


def describe_structure(module: torch.nn.Module, around: Iterable[torch.nn.Module] = ()) -> dict[str, Any]:
    """What of a module is no tensor and changes its results, as values of JSON.

    Class names and attributes of each part (numbers, texts, arrays, functions by name), each distinct config with its
    attention implementation, devices, what wraps or compiles it, which rounds otherwise, and what torch does around it
    now: autocast and the precision of products. Tensors are left to `Held`.

    Raises
    ------
    CacheError
        An attribute is an object of which no digest could tell what it changes.
    """
    modules = list(module.named_modules(remove_duplicate=False))
    known = _Known.of(modules)
    parts = {}
    for path, part in modules:
        config = vars(part).get("config")
        if config is not None:
            known.configs.setdefault(id(config), (path, config))
        parts[path] = [_qualified(type(part)), _attributes(path, part, known)]
    devices = {tensor.device.type for _, part in modules for _, tensor in _own_tensors(part)}
    return {
        "around": [_qualified(type(each)) for each in around],
        "compiled": [path for path, part in modules if part._compiled_call_impl is not None],  # noqa: SLF001
        "parts": parts,
        "configs": {path: describe_config(config) for path, config in known.configs.values()},
        "devices": sorted(devices),
        "autocast": {
            device: str(torch.get_autocast_dtype(device))
            for device in sorted(devices - {"meta"})
            if torch.is_autocast_enabled(device)
        },
        "matmul_precision": torch.get_float32_matmul_precision(),
    }


def describe_config(config: Any) -> Any:
    """A config without what changes no result."""
    if not callable(getattr(config, "to_dict", None)):
        return _plain(config if isinstance(config, dict) else getattr(config, "__dict__", config), _by_fields)
    # eager and sdpa differ by rounding only, but equal bytes are promised.
    attention = getattr(config, "_attn_implementation", None)
    return {"attention": attention, "values": _without_cosmetics(_plain(config.to_dict(), _by_fields))}


def refuse_hidden_changes(
    module: torch.nn.Module, around: Iterable[torch.nn.Module] = (), *, allow_hooks: bool
) -> None:
    """Refuse a module whose results no digest could tell.

    Raises
    ------
    CacheError
        A part has forward hooks or a method of its own, unless ``allow_hooks``; it keeps state that is no tensor; or it
        is in training mode and draws random numbers or takes statistics.
    """
    parts = list(module.named_modules())
    if not allow_hooks:
        _refuse_hooks_everywhere()
        for each in around:
            _refuse_hooks(f"the {type(each).__qualname__} around the module", each)
        for path, part in parts:
            _refuse_hooks(_named(path), part)
            _refuse_replaced(_named(path), part)
    for path, part in parts:
        if type(part).get_extra_state is not torch.nn.Module.get_extra_state:
            raise CacheError(f"{_named(path)} keeps state that is no tensor, which no digest covers")
    if any(part.training for _, part in parts):
        _refuse_chance(parts)


def _refuse_hooks_everywhere() -> None:
    hooks = [*module_hooks._global_forward_hooks.values(), *module_hooks._global_forward_pre_hooks.values()]  # noqa: SLF001
    for hook in hooks:
        raise CacheError(f"all modules have the forward hook {_qualified(hook)}, which may change results; {_ADVICE}")


def _refuse_hooks(where: str, part: torch.nn.Module) -> None:
    for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values()):  # noqa: SLF001
        if getattr(hook, "__module__", None) not in _CAPTURING:
            raise CacheError(f"{where} has the forward hook {_qualified(hook)}, which may change results; {_ADVICE}")


def _refuse_replaced(where: str, part: torch.nn.Module) -> None:
    for name, value in vars(part).items():
        # A class may say None, or a property, where its modules have a function.
        if callable(value) and name not in OF_ANY_MODULE and inspect.isroutine(getattr(type(part), name, None)):
            raise CacheError(f"{where} has a {name}() put in place of its class's; {_ADVICE}")


def _refuse_chance(parts: list[tuple[str, torch.nn.Module]]) -> None:
    """Attention drops by an attribute, ``Dropout`` by ``p``, and either only in training mode."""
    for path, part in parts:
        if not part.training:
            continue
        rates = {name: value for name, value in vars(part).items() if _is_rate(name)}
        if isinstance(part, torch.nn.modules.dropout._DropoutNd):  # noqa: SLF001  # the base that all of them have
            rates["p"] = part.p
        rates |= {f"config.{name}": value for name, value in _rates_of_config(part).items()}
        for name, rate in rates.items():
            if isinstance(rate, float) and rate > 0:
                raise CacheError(
                    f"{_named(path)} is in training mode and drops by chance ({name}={rate}): eval() first"
                )
        if isinstance(part, torch.nn.modules.batchnorm._NormBase):  # noqa: SLF001
            raise CacheError(f"{_named(path)} is in training mode and takes statistics of a batch: eval() first")


def _rates_of_config(part: torch.nn.Module) -> Mapping[str, Any]:
    config = getattr(vars(part).get("config"), "__dict__", {})
    # A classifier's is that of its Dropout, where there is a classifier.
    return {name: value for name, value in config.items() if _is_rate(name) and name != "classifier_dropout"}


def _is_rate(name: str) -> bool:
    return "drop" in name or "jitter" in name


@dataclasses.dataclass(frozen=True)
class _Known:
    """What is told elsewhere: parts and tensors by their names, and configs as they are found."""

    names: dict[int, str]
    configs: dict[int, tuple[str, Any]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, modules: Iterable[tuple[str, torch.nn.Module]]) -> _Known:
        names: dict[int, str] = {}
        for path, part in modules:
            names.setdefault(id(part), path)
            for name, tensor in _own_tensors(part):
                names.setdefault(id(tensor), f"{path}.{name}" if path else name)
        return cls(names)

    def tell(self, path: str, attribute: str, value: Any) -> Any:
        """What is not plain, or is refused."""
        if id(value) in self.names:
            return ["of the module", self.names[id(value)]]
        if isinstance(value, torch.Tensor):
            return "tensor"
        if isinstance(value, _COSMETIC):
            return None
        if callable(getattr(value, "to_dict", None)) and not isinstance(value, torch.nn.Module):
            where = f"{path}.{attribute}"
            return ["config", self.configs.setdefault(id(value), (where, value))[0]]
        if callable(getattr(value, "get_vocab", None)):
            return ["tokenizer", tokenizer_digest(value).hex()]
        raise CacheError(
            f"{_named(path)} has in {attribute!r} a {_qualified(type(value))}, and no digest tells what it changes; "
            "keep values, tensors and arrays there, or make it a submodule"
        )


def _own_tensors(part: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers of a part alone; torch's own iterators take several times as long."""
    for registered in (part._parameters, part._buffers):  # noqa: SLF001
        for name, tensor in registered.items():
            if tensor is not None:
                yield name, tensor


def _attributes(path: str, part: torch.nn.Module, known: _Known) -> dict[str, Any]:
    chosen = {}
    for name, value in vars(part).items():
        if name in OF_ANY_MODULE or name in _COSMETIC_ATTRIBUTES or name.startswith("_keys_to_ignore"):
            continue
        if type(value) in _SCALARS:
            chosen[name] = value
        elif name != "config" and not isinstance(value, (torch.Tensor, *_COSMETIC)):
            chosen[name] = _plain(value, partial(known.tell, path, name))
    return chosen


def _by_fields(value: Any) -> Any:
    """An object in a config."""
    if isinstance(value, torch.Tensor):
        return "tensor"
    if callable(getattr(value, "to_dict", None)):
        return _plain(value.to_dict(), _by_fields)
    return _qualified(type(value))


def _plain(value: Any, other: Callable[[Any], Any]) -> Any:
    """A value of JSON; what is not plain as ``other`` says."""
    match value:
        case None | bool() | int() | float() | str() if not isinstance(value, enum.Enum):
            plain: Any = value
        case dict():
            plain = {str(_plain(key, other)): _plain(each, other) for key, each in value.items()}
        case list() | tuple():
            plain = [_plain(each, other) for each in value]
        case set() | frozenset():
            plain = sorted(str(_plain(each, other)) for each in value)
        case enum.Enum():
            plain = _plain(value.value, other)
        case partial():
            plain = [_plain(each, other) for each in (value.func, value.args, value.keywords)]
        case np.ndarray() | np.generic() if not value.dtype.hasobject:
            raw = np.ascontiguousarray(value)
            plain = ["array", raw.dtype.str, list(value.shape), blake3(raw.tobytes()).hexdigest()]
        case types.SimpleNamespace():
            plain = [_qualified(type(value)), _plain(vars(value), other)]
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            named = {each.name: getattr(value, each.name, None) for each in dataclasses.fields(value)}
            plain = [_qualified(type(value)), _plain(named | getattr(value, "__dict__", {}), other)]
        case _:
            plain = _name(value)
            plain = other(value) if plain is None else plain
    return plain


def _name(value: Any) -> str | None:
    """What something is that its name tells all of."""
    if isinstance(value, _OF_TORCH):
        return str(value)
    if isinstance(value, _PRINTED):
        return f"{type(value).__name__}: {value!r}"
    if isinstance(value, types.ModuleType):
        return value.__name__
    return _qualified(value) if callable(value) and isinstance(getattr(value, "__qualname__", None), str) else None


def _without_cosmetics(value: Any) -> Any:
    if isinstance(value, dict):  # composite models nest configs
        return {key: _without_cosmetics(each) for key, each in value.items() if key not in _COSMETIC_KEYS}
    return value


def _qualified(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _named(path: str) -> str:
    return f"submodule {path!r}" if path else "the module"


def wrappers(module: torch.nn.Module, inner: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """What stands around a module, from outside."""
    while module is not inner:
        yield module
        module = module.get_submodule("_orig_mod" if "_orig_mod" in module._modules else "module")  # noqa: SLF001
