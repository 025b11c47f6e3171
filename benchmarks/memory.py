"""Peak memory of a process that imports a file and exports it again; run as a program, it is that process."""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_WRITE_NBYTES = 1 << 20
_MIB = 1 << 20


@dataclass(frozen=True)
class Peaks:
    """MiB of resident memory at most, over those of the same program on a file of 1 MiB."""

    content: str
    imported: float
    exported: float


def measure_memory(url: str, folder: Path, *, tiny: bool) -> list[Peaks]:
    """Import and export files of random bf16 tensors, each in a process of its own."""
    tensor_mib = 1 if tiny else 8
    many_mib = 16 if tiny else 1024
    wide = (2, 1536, 2048) if tiny else (2, 24_576, 16_384)
    small = {"t": (512, 1024)}
    many = {f"t{index}": (tensor_mib * 512, 1024) for index in range(many_mib // tensor_mib)}
    base = _peaks(url, folder, "small", small)
    cases = {
        f"{many_mib} MiB in tensors of {tensor_mib} MiB": many,
        f"one tensor of {_nbytes(wide) // _MIB} MiB, its rows {_nbytes(wide) // _MIB // 2} MiB": {"t": wide},
    }
    measured = []
    for index, (content, tensors) in enumerate(cases.items()):
        peaks = _peaks(url, folder, f"case-{index}", tensors)
        measured.append(Peaks(content, peaks[0] - base[0], peaks[1] - base[1]))
    return measured


def _nbytes(shape: tuple[int, ...]) -> int:
    nbytes = 2
    for size in shape:
        nbytes *= size
    return nbytes


def _peaks(url: str, folder: Path, name: str, tensors: dict[str, tuple[int, ...]]) -> tuple[float, float]:
    path = folder / f"{name}.safetensors"
    _write(path, tensors)
    done = subprocess.run(
        [sys.executable, __file__, str(path), name, str(folder / f"{name}-exported")],
        env=os.environ | {"ARC_HALO_DATABASE_URL": url},
        check=True,
        capture_output=True,
        text=True,
    )
    path.unlink()
    imported, exported = map(float, done.stdout.split())
    return imported, exported


def _write(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    header, at = {}, 0
    for name, shape in tensors.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + _nbytes(shape)]}
        at += _nbytes(shape)
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for _ in range(0, at, _WRITE_NBYTES):
            file.write(os.urandom(_WRITE_NBYTES))


def _peak_mib() -> float:
    """Of this program alone: `ru_maxrss` starts with the peak of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (_MIB if sys.platform == "darwin" else 1024)


def _import_and_export(path: str, name: str, folder: str) -> None:
    import arc_halo  # noqa: PLC0415  only the process that is measured needs it

    with arc_halo.connect() as database, database.session() as session:
        model = arc_halo.import_model(session, path, name=name)
        session.commit()
        imported = _peak_mib()
        for exported in arc_halo.export_model(session, model, folder):
            exported.unlink()
    print(imported, _peak_mib())


if __name__ == "__main__":
    _import_and_export(*sys.argv[1:])
