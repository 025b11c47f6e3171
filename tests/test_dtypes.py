import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError, deserialize

from arc_halo.dtypes import BLOCK_DTYPES, DTYPES, by_name, of_array
from arc_halo.errors import TensorError


@pytest.mark.parametrize("name", DTYPES)
def test_the_reference_reads_every_name_and_width(name):
    nbytes = by_name(name).nbytes(8)
    header = b'{"a":{"dtype":"%s","shape":[8],"data_offsets":[0,%d]}}' % (name.encode(), nbytes)
    ((_, tensor),) = deserialize(len(header).to_bytes(8, "little") + header + bytes(nbytes))
    assert tensor["dtype"] == name


def test_the_reference_knows_no_other():
    header = b'{"a":{"dtype":"?","shape":[8],"data_offsets":[0,8]}}'
    with pytest.raises(SafetensorError) as refused:
        deserialize(len(header).to_bytes(8, "little") + header + bytes(8))
    _, known = str(refused.value).split("expected one of ")
    assert {name.strip(" `") for name in known.split(" at ")[0].split(",")} == set(DTYPES)


@pytest.mark.parametrize("name", [name for name, dtype in DTYPES.items() if dtype.numpy is not None])
def test_arrays_lead_back_to_the_name(name):
    dtype = by_name(name)
    assert of_array(np.zeros(3, dtype.numpy)) is dtype
    assert dtype.nbytes(3) == np.zeros(3, dtype.numpy).nbytes


@pytest.mark.parametrize("big", [">f4", ">i8", ">c8"])
def test_byte_order_does_not_matter(big):
    assert of_array(np.zeros(3, big)) is of_array(np.zeros(3, big.replace(">", "<")))


@pytest.mark.parametrize("dtype", [object, "U3", "S3", "M8[s]", "f4,i4", "c16", ml_dtypes.int4])
def test_arrays_without_a_name_are_refused(dtype):
    with pytest.raises(TensorError, match="convert to one of"):
        of_array(np.zeros(3, dtype))


def test_an_unknown_name_is_refused():
    with pytest.raises(TensorError, match="'F128'"):
        by_name("F128")


@pytest.mark.parametrize(("name", "count", "nbytes"), [("F4", 3, None), ("F4", 4, 2), ("F6_E2M3", 4, 3), ("F32", 0, 0)])
def test_packed_elements_fill_whole_bytes_or_have_no_size(name, count, nbytes):
    assert by_name(name).nbytes(count) == nbytes


@pytest.mark.parametrize(("name", "nbytes"), [("C64", 4), ("F4", 1), ("BF16", 2), ("U8", 1), ("I64", 8)])
def test_components(name, nbytes):
    assert by_name(name).component_nbytes == nbytes


@pytest.mark.parametrize(("count", "nbytes"), [(0, 0), (32, 34), (96, 102), (33, None), (1, None)])
def test_elements_fill_whole_blocks_or_have_no_size(count, nbytes):
    assert by_name("Q8_0").nbytes(count) == nbytes
    if nbytes is not None:
        assert by_name("Q8_0").elements(nbytes) == count


@pytest.mark.parametrize("dtype", [*DTYPES.values(), *BLOCK_DTYPES.values()], ids=lambda dtype: dtype.name)
def test_bytes_as_an_array(dtype):
    shape = (3, 4 * dtype.block_elements)
    raw = np.zeros(dtype.nbytes(3 * shape[1]), np.uint8)
    array = dtype.as_array(raw, shape)
    assert array.tobytes() == raw.tobytes()
    if dtype.is_block:
        assert array.shape == (3, 4 * dtype.bits // 8)
    else:
        assert array.shape == (shape if dtype.numpy is not None else raw.shape)


def test_integers_and_blocks_are_not_trained():
    assert [name for name in ("F32", "BF16", "I32", "Q8_0", "Q4_K") if by_name(name).is_trainable] == ["F32", "BF16"]
