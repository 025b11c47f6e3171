"""The contract of codecs as a test suite: subclass `CodecTests` and pytest checks yours."""
# ruff: noqa: D102  # a test's name is its documentation

from __future__ import annotations

import json
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arc_halo.codecs.abc import MAX_RAW_NBYTES
from arc_halo.codecs.digest import chunk_digest
from arc_halo.dtypes import BLOCK_DTYPES, DTYPES, DType, by_name
from arc_halo.errors import CodecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from arc_halo.codecs import Codec

INDEX = "index.json"
_SEED = 20261101

# The suite is inherited by design; wall-clock deadlines would judge the machine.
_property = settings(deadline=None, suppress_health_check=[HealthCheck.differing_executors])


@st.composite
def chunks(draw: st.DrawFn) -> tuple[bytes, DType]:
    """A chunk of any type: noise, weights, ramps, repetitions or constants, of 1 to about 10,000 bytes."""
    dtype = draw(st.sampled_from([*DTYPES.values(), *BLOCK_DTYPES.values()]))
    count = draw(st.integers(1, 1200)) * dtype.component_nbytes
    kind = draw(st.sampled_from(["noise", "weights", "ramp", "repetition", "constant", "bytes"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    raw = {
        "noise": lambda: rng.bytes(count),
        "weights": lambda: rng.normal(size=count).astype(ml_dtypes.bfloat16).tobytes()[:count],
        "ramp": lambda: np.arange(count, dtype=f"<u{dtype.component_nbytes}").tobytes()[:count],
        "repetition": lambda: (rng.bytes(16) * count)[:count],
        "constant": lambda: rng.bytes(dtype.component_nbytes) * (count // dtype.component_nbytes),
        "bytes": lambda: draw(st.binary(min_size=count, max_size=count)) if count <= 64 else bytes(count),  # noqa: PLR2004
    }[kind]()
    return raw, dtype


def golden_samples() -> Iterator[tuple[str, DType, bytes]]:
    """Name, type and raw bytes of each chunk in a golden folder; the same in every release."""
    rng = np.random.default_rng(_SEED)
    weights = rng.normal(scale=0.02, size=1500)
    yield "bf16-weights", by_name("BF16"), weights.astype(ml_dtypes.bfloat16).tobytes()
    yield "f16-weights", by_name("F16"), weights.astype("<f2").tobytes()
    yield "f32-weights", by_name("F32"), weights.astype("<f4").tobytes()
    yield "f64-weights", by_name("F64"), weights.astype("<f8").tobytes()
    yield "c64-weights", by_name("C64"), weights.astype("<c8").tobytes()
    yield "f8-weights", by_name("F8_E4M3"), weights.astype(ml_dtypes.float8_e4m3fn).tobytes()
    yield "f4-packed", by_name("F4"), rng.bytes(750)
    yield "f32-nan-payloads", by_name("F32"), np.arange(0x7FC00000, 0x7FC00200, dtype="<u4").tobytes()
    yield "i64-ramp", by_name("I64"), np.arange(-300, 300, dtype="<i8").tobytes()
    yield "i32-range", by_name("I32"), rng.integers(-1000, 1000, 800).astype("<i4").tobytes()
    yield "u16-range", by_name("U16"), rng.integers(0, 30000, 800).astype("<u2").tobytes()
    yield "u8-noise", by_name("U8"), rng.bytes(300)
    yield "bool-mask", by_name("BOOL"), np.tril(np.ones((32, 32), np.bool_)).tobytes()
    yield "f32-zeros", by_name("F32"), bytes(4000)


def write_golden(codec: Codec, folder: Path) -> None:
    """Write what a codec makes of the golden samples, for `CodecTests.golden` to read for ever after.

    Raises
    ------
    FileExistsError
        The folder is there: golden bytes are never replaced. A codec that writes another format needs another id.
    """
    folder.mkdir(parents=True)
    index = {}
    for name, dtype, raw in golden_samples():
        payload = codec.encode(memoryview(raw), dtype)
        if payload is not None:
            (folder / name).write_bytes(payload)
            index[name] = {"dtype": dtype.name, "raw_nbytes": len(raw), "digest": chunk_digest(raw).hex()}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


class CodecTests:
    """What every codec must do; a subclass of six lines checks one.

    ::

        class TestMyCodec(CodecTests):
            codec = MyCodec()
            golden = Path(__file__).parent / "golden" / MyCodec.id

    ``golden`` is a folder that `write_golden` wrote once and that is kept with the tests.
    """

    codec: ClassVar[Codec]
    golden: ClassVar[Path]

    def _encode(self, raw: bytes, dtype: DType) -> bytes:
        payload = self.codec.encode(memoryview(raw), dtype)
        if payload is None:
            pytest.fail(f"{self.codec.id} refuses {len(raw)} whole elements of {dtype.name}")
        return bytes(payload)

    def test_id_is_fit_for_a_column(self) -> None:
        assert self.codec.id
        assert self.codec.id.isascii()
        assert len(self.codec.id) <= 32  # noqa: PLR2004

    @_property
    @given(chunks())
    def test_round_trip(self, chunk: tuple[bytes, DType]) -> None:
        raw, dtype = chunk
        assert bytes(self.codec.decode(self._encode(raw, dtype), dtype, len(raw))) == raw

    @_property
    @given(chunks(), st.integers(1, 7))
    def test_round_trip_at_any_address(self, chunk: tuple[bytes, DType], shift: int) -> None:
        raw, dtype = chunk
        source = memoryview(bytes(shift) + raw)[shift:]
        payload = self.codec.encode(source, dtype)
        assert payload is not None
        target = bytearray(shift + len(raw) + 1)
        self.codec.decode(memoryview(payload), dtype, len(raw), memoryview(target)[shift:-1])
        assert target == bytes(shift) + raw + b"\0"

    @pytest.mark.parametrize("name", ["BF16", "F16", "F32", "F64"])
    def test_nan_payloads_and_signed_zeros_survive(self, name: str) -> None:
        dtype = by_name(name)
        raw = b"".join((b"\xff" * dtype.component_nbytes, bytes(dtype.component_nbytes), b"\x01" * 64, b"\x80" * 64))
        raw += np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0]).astype(dtype.numpy).tobytes()
        assert bytes(self.codec.decode(self._encode(raw, dtype), dtype, len(raw))) == raw

    def test_more_than_a_reader_takes_is_declined(self) -> None:
        virtual = np.zeros(MAX_RAW_NBYTES + 1, np.uint8)  # pages nobody touches
        assert self.codec.encode(virtual.data, by_name("U8")) is None

    def test_no_bytes_are_declined_or_kept(self) -> None:
        payload = self.codec.encode(memoryview(b""), by_name("F32"))
        assert payload is None or not self.codec.decode(payload, by_name("F32"), 0)

    @_property
    @given(chunks(), st.data())
    def test_a_corrupted_payload_is_refused_or_keeps_its_length(
        self, chunk: tuple[bytes, DType], data: st.DataObject
    ) -> None:
        raw, dtype = chunk
        corrupted = data.draw(_corruptions(self._encode(raw, dtype)))
        out = bytearray(len(raw) + 64)
        try:
            decoded = self.codec.decode(corrupted, dtype, len(raw), memoryview(out)[: len(raw)])
        except CodecError:
            pass
        else:
            assert decoded.nbytes == len(raw)
        assert not any(out[len(raw) :])

    @_property
    @given(chunks(), st.integers(-64, 64).filter(bool))
    def test_another_size_is_refused(self, chunk: tuple[bytes, DType], more: int) -> None:
        raw, dtype = chunk
        payload = self._encode(raw, dtype)
        with pytest.raises(CodecError):
            self.codec.decode(payload, dtype, len(raw) + more * dtype.component_nbytes)

    @pytest.mark.parametrize("raw_nbytes", [-1, 1 << 40, 1 << 63])
    def test_an_absurd_size_is_refused(self, raw_nbytes: int) -> None:
        with pytest.raises(CodecError):
            self.codec.decode(self._encode(bytes(64), by_name("F32")), by_name("F32"), raw_nbytes)

    def test_a_bomb_is_refused_without_its_memory(self) -> None:
        bomb = self._encode(bytes(1 << 25), by_name("F32"))
        tracemalloc.start()
        try:
            with pytest.raises(CodecError):
                self.codec.decode(bomb, by_name("F32"), 1 << 16)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 1 << 20

    @pytest.mark.parametrize("unfit", [bytes, lambda n: bytearray(n + 4), lambda n: memoryview(bytearray(2 * n))[::2]])
    def test_an_unfit_buffer_is_refused(self, unfit: Callable[[int], Any]) -> None:
        with pytest.raises(CodecError):
            self.codec.decode(self._encode(bytes(64), by_name("F32")), by_name("F32"), 64, memoryview(unfit(64)))

    def test_threads_share_an_instance(self) -> None:
        samples = [(dtype, raw) for _, dtype, raw in golden_samples()] * 8

        def round_trips(sample: tuple[DType, bytes]) -> bool:
            dtype, raw = sample
            return bytes(self.codec.decode(self._encode(raw, dtype), dtype, len(raw))) == raw

        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(round_trips, samples))

    def test_golden_bytes_decode(self) -> None:
        """Written once by ``write_golden(codec, folder)`` for a new id, kept in git, decoded by every later release."""
        index = json.loads((self.golden / INDEX).read_text())
        assert index
        for name, expected in index.items():
            payload = (self.golden / name).read_bytes()
            raw = self.codec.decode(payload, by_name(expected["dtype"]), expected["raw_nbytes"])
            assert chunk_digest(raw).hex() == expected["digest"], name


def _corruptions(payload: bytes) -> st.SearchStrategy[bytes]:
    places = st.integers(0, len(payload) - 1)
    return st.one_of(
        st.tuples(places, st.integers(1, 255)).map(lambda hit: _replaced(payload, [hit])),
        st.lists(st.tuples(places, st.integers(1, 255)), max_size=8).map(lambda hits: _replaced(payload, hits)),
        # Headers come first: half of the hits go there.
        st.tuples(st.integers(0, min(len(payload), 40) - 1), st.integers(1, 255)).map(
            lambda hit: _replaced(payload, [hit])
        ),
        places.map(lambda length: payload[:length]),
        st.binary(min_size=1, max_size=32).map(lambda tail: payload + tail),
        st.binary(max_size=len(payload)),
    )


def _replaced(payload: bytes, hits: list[tuple[int, int]]) -> bytes:
    corrupted = bytearray(payload)
    for place, flip in hits:
        corrupted[place] ^= flip
    return bytes(corrupted)
