"""What is measured: a model with its keys and values here, in a file and in Redis, and an index of a million blocks."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
import torch
from psycopg import sql
from transformers import GPT2Config, GPT2LMHeadModel

from arc_halo.inference.kv import KVLayout, LayerShape, hashing
from arc_halo.inference.namespaces import Namespace, ensure_namespace
from arc_halo.integrations.transformers_first_token import FirstToken

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from arc_halo.database import Database

REDIS = "redis-server"
LOOKUP_BLOCK_TOKENS = 256
_VOCABULARY = 50_257


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    layers: int
    heads: int
    width: int
    prefix_tokens: int
    block_tokens: int
    warm_runs: int
    computed_runs: int
    blocks: int
    lookup_blocks: int
    lookups: int
    texts: int
    text_tokens: int


def make_model(size: Size, seed: int = 0) -> GPT2LMHeadModel:
    """GPT-2 of that size with random weights."""
    torch.manual_seed(seed)
    config = GPT2Config(n_layer=size.layers, n_head=size.heads, n_embd=size.width, n_positions=size.prefix_tokens + 64)
    return GPT2LMHeadModel(config).eval()


def make_tokens(count: int, seed: int) -> torch.Tensor:
    """Random token ids, of shape [1, count]."""
    return torch.randint(_VOCABULARY, (1, count), generator=torch.Generator().manual_seed(seed))


def seconds_to_first_token(model: GPT2LMHeadModel, input_ids: torch.Tensor) -> float:
    """Of a model that has no cache of ours."""
    first = FirstToken(None)
    began = time.perf_counter()
    with torch.inference_mode():
        model.generate(input_ids, streamer=first, max_new_tokens=1, do_sample=False, pad_token_id=0)
    return (first.at or time.perf_counter()) - began


class PlainFile:
    """Keys and values in one file, read into arrays; nothing is looked up, and nothing is compared."""

    name = "a plain file"

    def __init__(self, folder: Path) -> None:
        self._path = folder / "keys-and-values"

    def store(self, layers: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Write all of them, one after another."""
        with self._path.open("wb") as file:
            for pair in layers:
                for array in pair:
                    file.write(np.ascontiguousarray(array).data)

    def load(self, layout: KVLayout, token_count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Read all of them."""
        layers = layout.empty(token_count)
        with self._path.open("rb", buffering=0) as file:
            for pair in layers:
                for array in pair:
                    file.readinto(array.reshape(-1).view(np.uint8).data)
        return layers


class Redis:
    """Keys and values in Redis, a key for each layer of each block, fetched by one MGET; nothing is compared."""

    name = "Redis"

    def __init__(self, folder: Path, resources: ExitStack) -> None:
        import redis  # noqa: PLC0415  # an extra

        address = folder / "redis.socket"
        command = [REDIS, "--port", "0", "--unixsocket", str(address), "--save", "", "--dir", str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        resources.callback(process.wait)
        resources.callback(process.terminate)
        self._client: Any = redis.Redis(unix_socket_path=str(address))
        resources.callback(self._client.close)
        for _ in range(200):
            with suppress(redis.ConnectionError):  # it does not listen yet
                self._client.ping()
                break
            time.sleep(0.05)
        self._names: list[str] = []
        self._blocks: list[tuple[int, int]] = []

    @staticmethod
    def is_here() -> bool:
        """Whether the server and its client are installed."""
        return shutil.which(REDIS) is not None and find_spec("redis") is not None and hasattr(socket, "AF_UNIX")

    def version(self) -> str:
        """Of the server."""
        return str(self._client.info("server")["redis_version"])

    def store(self, layers: list[tuple[np.ndarray, np.ndarray]], block_tokens: int) -> None:
        """Set each layer of each block."""
        count = layers[0][0].shape[1]
        self._blocks = [(start, min(start + block_tokens, count)) for start in range(0, count, block_tokens)]
        values = {
            f"{start}:{index}:{part}": np.ascontiguousarray(array[:, start:stop]).tobytes()
            for start, stop in self._blocks
            for index, pair in enumerate(layers)
            for part, array in zip("kv", pair, strict=True)
        }
        self._names = list(values)
        self._client.mset(values)

    def load(self, layout: KVLayout, token_count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Get all of them, and put them in place."""
        layers = layout.empty(token_count)
        values = iter(self._client.mget(self._names))
        for start, stop in self._blocks:
            for pair in layers:
                for array in pair:
                    heads, _, dim = array.shape
                    got = np.frombuffer(next(values), array.dtype).reshape(heads, stop - start, dim)
                    array[:, start:stop] = got
        return layers


class Index:
    """A million blocks without payloads, in chains of equal length."""

    def __init__(self, database: Database, connection: psycopg.Connection[Any], size: Size) -> None:
        self.layout = KVLayout((LayerShape(1, 1, 1),), "F32")
        self.namespace = Namespace(
            kind="kv",
            weights_digest=bytes(32),
            config_digest=bytes(32),
            dtype="F32",
            layout=str(self.layout),
            block_token_count=LOOKUP_BLOCK_TOKENS,
        )
        with database.session() as session, session.begin():
            self._id = ensure_namespace(session, self.namespace)
        self._connection = connection
        self._chain_blocks = size.lookup_blocks
        self.chains = max(1, size.blocks // size.lookup_blocks)

    def tokens(self, chain: int) -> np.ndarray:
        """The tokens of one chain."""
        return np.random.default_rng(chain).integers(_VOCABULARY, size=self._chain_blocks * LOOKUP_BLOCK_TOKENS)

    def fill(self) -> None:
        """By COPY; the index over tokens is made afterwards, and foreign keys are not looked at meanwhile."""
        index = "arc_halo.ix_kv_cache_after_parent"
        definition = self._connection.execute("SELECT pg_get_indexdef(%s::regclass)", [index]).fetchall()[0][0]
        self._connection.execute("SET session_replication_role = replica")
        self._connection.execute(f"DROP INDEX {index}")
        statement = """
            COPY arc_halo.kv_cache (tenant_id, namespace_id, block_hash, parent_hash, position, token_ids,
                                    stored_nbytes, is_logged) FROM STDIN (FORMAT BINARY)
        """
        with self._connection.cursor().copy(statement) as copy:
            copy.set_types(["int4", "int4", "bytea", "bytea", "int4", "bytea", "int8", "bool"])
            for chain in range(self.chains):
                packed = hashing.pack_tokens(self.tokens(chain))
                hashes = hashing.chain(self.namespace.digest, packed, LOOKUP_BLOCK_TOKENS)
                step = LOOKUP_BLOCK_TOKENS * hashing.TOKEN_NBYTES
                for number, name in enumerate(hashes):
                    parent = hashes[number - 1] if number else None
                    tokens = packed[number * step : (number + 1) * step]
                    copy.write_row((0, self._id, name, parent, number, tokens, 0, True))
        self._connection.execute(sql.SQL(definition))
        self._connection.execute("RESET session_replication_role")
        self._connection.execute("VACUUM (ANALYZE) arc_halo.kv_cache")
        self._connection.execute("CHECKPOINT")

    def nbytes(self) -> int:
        """Bytes of the table with its indexes."""
        (row,) = self._connection.execute("SELECT pg_total_relation_size('arc_halo.kv_cache')").fetchall()
        return int(row[0])
