"""PyTorch's tensors in and out, bit for bit."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from arc_halo.errors import TensorError, TensorNotFound
from arc_halo.integrations.torch import from_numpy, load_state_dict, save_state_dict, to_numpy
from arc_halo.registry import dequantize_model, import_model, quantize_model
from tests.fixtures import gguf_models
from tests.fixtures.models import llama

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64,
    torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
]  # fmt: skip


def random_tensor(dtype, shape, seed=0):
    """Any bits at all, NaNs of every payload among them."""
    count = int(np.prod(shape)) * dtype.itemsize
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (count,), dtype=torch.uint8)
    raw.random_(0, 2 if dtype is torch.bool else 256, generator=torch.Generator().manual_seed(seed))
    return raw.view(dtype).reshape(shape)


def raw(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_comes_back_bit_for_bit(session, dtype):
    state = {
        "w": random_tensor(dtype, (37, 5)),
        "one": random_tensor(dtype, (1,)),
        "none": random_tensor(dtype, (0, 3)),
    }
    save_state_dict(session, "m", {}, state)
    loaded = load_state_dict(session, "m")
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert (loaded[name].dtype, loaded[name].shape) == (dtype, tensor.shape)
        assert raw(loaded[name]) == raw(tensor)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 6), max_size=4), st.integers(0, 3), st.booleans())
def test_any_strides_become_an_array_and_a_tensor_again(dtype, shape, seed, transposed):
    tensor = random_tensor(dtype, tuple(shape), seed)
    given_tensor = tensor.permute(*reversed(range(tensor.ndim))) if transposed and tensor.ndim else tensor
    again = from_numpy(to_numpy(given_tensor))
    assert again.dtype == dtype
    assert raw(again) == raw(given_tensor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_contiguous_memory_is_not_copied(dtype):
    tensor = random_tensor(dtype, (8, 8))
    array = to_numpy(tensor)
    assert array.__array_interface__["data"][0] == tensor.data_ptr()
    assert from_numpy(array).data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize(
    "tensor",
    [torch.eye(3).to_sparse(), torch.empty(3, device="meta"), torch.zeros(3, dtype=torch.complex128)],
    ids=["sparse", "meta", "complex128"],
)
def test_what_cannot_be_stored_is_refused_by_name(session, tensor):
    with pytest.raises(TensorError):
        save_state_dict(session, "m", {}, {"odd": tensor})


def test_a_module_goes_in_and_comes_out(session):
    module = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.LayerNorm(30), torch.nn.Linear(30, 2)).bfloat16()
    save_state_dict(session, "net", {"model_type": "net"}, module.state_dict())
    other = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.LayerNorm(30), torch.nn.Linear(30, 2)).bfloat16()
    other.load_state_dict(load_state_dict(session, "net"))
    given_input = torch.ones(3, 20, dtype=torch.bfloat16)
    assert torch.equal(module(given_input), other(given_input))


def test_a_view_with_gradient_and_lazy_conjugation_is_stored_as_what_it_means(session):
    values = torch.randn(4, 4, dtype=torch.complex64).conj()
    trained = torch.randn(4, 4, requires_grad=True).T
    save_state_dict(session, "m", {}, {"c": values, "t": trained})
    loaded = load_state_dict(session, "m")
    assert torch.equal(loaded["c"], values.resolve_conj())
    assert torch.equal(loaded["t"], trained.detach())


def test_some_names_and_names_that_are_not_there(session):
    save_state_dict(session, "m", {}, {"a": torch.ones(2), "b": torch.zeros(3)})
    assert list(load_state_dict(session, "m", names=["b"])) == ["b"]
    with pytest.raises(TensorNotFound):
        load_state_dict(session, "m", names=["c"])


def test_tied_weights_are_one_tensor(session):
    model = llama()
    arrays = {name: from_numpy(array.copy()) for name, array in model.arrays(0).items()}
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
    save_state_dict(session, "tied", model.config | {"tie_word_embeddings": True}, arrays)
    loaded = load_state_dict(session, "tied")
    assert loaded["lm_head.weight"] is loaded["model.embed_tokens.weight"]


def test_blocks_are_refused_until_they_are_floats(session, tmp_path):
    tensors = gguf_models.llama()
    path = gguf_models.write(tmp_path / "tiny.gguf", tensors, gguf_models.metadata())
    model = import_model(session, path, name="tiny")
    name = "blk.0.ffn_down.weight"
    with pytest.raises(TensorError, match=r"is Q8_0, which PyTorch does not have.*dequantize_model"):
        load_state_dict(session, model)
    assert list(load_state_dict(session, model, names=["output_norm.weight"])) == ["output_norm.weight"]
    floats = load_state_dict(session, model, dequantize=True)
    loaded = load_state_dict(session, dequantize_model(session, model))
    assert floats.keys() == loaded.keys()
    assert all(torch.equal(floats[each], loaded[each]) for each in floats)
    assert torch.equal(loaded[name], torch.from_numpy(gguf_models.floats(tensors[name])))


@pytest.mark.parametrize("scheme", ["int8", "fp8", "nf4"])
def test_a_quantised_model_fills_a_module_of_floats(session, scheme):
    module = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Linear(30, 2)).bfloat16()
    save_state_dict(session, "net", {"model_type": "net"}, module.state_dict())
    made = quantize_model(session, "net", scheme, include="*.weight")
    assert "0.weight_scale" in load_state_dict(session, made)
    other = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Linear(30, 2)).bfloat16()
    other.load_state_dict(load_state_dict(session, made, dequantize=True))
    restored = load_state_dict(session, dequantize_model(session, made))
    assert all(torch.equal(tensor, restored[name]) for name, tensor in other.state_dict().items())


def test_tied_codes_are_one_tensor_of_floats(session):
    model = llama()
    arrays = {name: from_numpy(array.copy()) for name, array in model.arrays(0).items()}
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
    save_state_dict(session, "tied", model.config | {"tie_word_embeddings": True}, arrays)
    made = quantize_model(session, "tied", include="*")
    loaded = load_state_dict(session, made, dequantize=True)
    assert loaded.keys() == arrays.keys()
    assert loaded["lm_head.weight"] is loaded["model.embed_tokens.weight"]
