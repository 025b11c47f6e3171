from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import FileNotWritten, SpoolError
from arc_halo.training import spool as spool_module
from arc_halo.training.keys import SeriesKey
from arc_halo.training.points import POINT
from arc_halo.training.spool import Outcome, SegmentWriter, Spool, read_or_set_aside, read_segment
from tests.training.spooled import HEADER, batches, points

LOSS = [SeriesKey("loss")]


def written(path, made, outcome=None):
    """The file's bytes, and where each record of it ends."""
    path.unlink(missing_ok=True)
    writer = SegmentWriter(path, HEADER)
    ends = [writer.nbytes]
    for keys, batch in made:
        writer.append_points(keys, batch)
        ends.append(writer.nbytes)
    if outcome is not None:
        writer.append_outcome(outcome)
    writer.close()
    return path.read_bytes(), ends


def joined(parts):
    return np.concatenate([np.empty(0, POINT), *parts])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("spool") / "1.points"


@given(made=batches(), error=st.none() | st.text())
def test_what_was_written_is_read(path, made, error):
    outcome = Outcome("failed", error, 7, 0.5)
    written(path, made, outcome)
    segment = read_segment(path)
    assert (segment.header, segment.outcome, segment.torn_nbytes) == (HEADER, outcome, 0)
    assert segment.points.tobytes() == joined(batch for _, batch in made).tobytes()
    assert segment.keys == (made[-1][0] if made else [])


@given(made=batches(), data=st.data())
def test_of_a_torn_file_whole_records_are_read(path, made, data):
    raw, ends = written(path, made)
    cut = data.draw(st.integers(ends[0], len(raw)))
    path.write_bytes(raw[:cut])
    whole = sum(end <= cut for end in ends) - 1
    segment = read_segment(path)
    # Keys go before their points in one write, so that they may be there without them.
    assert segment.points.tobytes() == joined(batch for _, batch in made[:whole]).tobytes()
    assert cut - segment.torn_nbytes >= ends[whole]


@given(made=batches(), data=st.data())
def test_a_flipped_bit_never_makes_other_points(path, made, data):
    raw, _ = written(path, made)
    changed = bytearray(raw)
    changed[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(changed)
    try:
        segment = read_segment(path)
    except SpoolError:
        return
    stored = joined(batch for _, batch in made).tobytes()
    assert stored.startswith(segment.points.tobytes())
    assert segment.torn_nbytes


@given(st.binary(max_size=200))
def test_other_files_are_refused(path, raw):
    path.write_bytes(raw)
    with pytest.raises(SpoolError, match="points"):
        read_segment(path)


def test_a_damaged_file_is_set_aside(tmp_path):
    path = tmp_path / "1.points"
    path.write_bytes(b"nonsense")
    assert read_or_set_aside(path) is None
    assert [each.name for each in tmp_path.iterdir()] == ["1.points.damaged"]


def test_segments_are_in_the_order_of_their_numbers(tmp_path):
    spool = Spool(tmp_path, HEADER)
    spool.append(LOSS, points(1))
    held = spool.reserve()
    spool.append(LOSS, points(3))
    spool.append(LOSS, points(2), held)
    spool.append(LOSS, points(4))
    read = [read_segment(path).points["step"].tolist() for path in spool.segments()]
    assert read == [[1], [2], [3, 4]]
    assert [read_segment(path).points["step"].tolist() for path in spool.segments(held)] == [[1]]


def test_nothing_is_made_before_the_first_point(tmp_path):
    spool = Spool(tmp_path / "spool", HEADER)
    spool.reserve()
    assert spool.segments() == []
    spool.remove([])
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_the_folder_goes_with_its_last_segment(tmp_path):
    spool = Spool(tmp_path, HEADER)
    spool.append(LOSS, points(1))
    spool.remove(spool.segments())
    assert list(tmp_path.iterdir()) == []
    spool.append(LOSS, points(2))
    assert len(spool.segments()) == 1


def test_a_long_outage_makes_several_segments(tmp_path, monkeypatch):
    monkeypatch.setattr(spool_module, "SEGMENT_NBYTES", 1000)
    spool = Spool(tmp_path, HEADER)
    for step in range(40):
        spool.append(LOSS, points(step))
    paths = spool.segments()
    assert len(paths) > 2
    assert np.concatenate([read_segment(path).points for path in paths])["step"].tolist() == list(range(40))


def test_others_cannot_read_it(tmp_path):
    spool = Spool(tmp_path / "spool", HEADER)
    spool.append(LOSS, points(1))
    (path,) = spool.segments()
    modes = [each.stat().st_mode & 0o777 for each in (path, path.parent, path.parent.parent)]
    assert modes[:2] == [0o600, 0o700]


def test_a_full_disk_loses_nothing_that_was_written(tmp_path):
    spool = Spool(tmp_path, HEADER)
    spool.append(LOSS, points(1))
    write = spool._current._file.write

    class Full:
        def write(self, data):
            write(data[:20])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __getattr__(self, name):
            return getattr(original, name)

    original, spool._current._file = spool._current._file, Full()
    with pytest.raises(FileNotWritten, match="ARC_HALO_SPOOL_FOLDER"):
        spool.append(LOSS, points(2))
    spool._current._file = original
    spool.append(LOSS, points(3))
    (path,) = spool.segments()
    segment = read_segment(path)
    assert segment.points["step"].tolist() == [1, 3]
    assert segment.torn_nbytes == 0
