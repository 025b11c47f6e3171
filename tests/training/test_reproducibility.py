"""What comparing two attempts proves."""

import pytest

from arc_halo.errors import CheckpointError
from arc_halo.training.reproducibility import verify_reproducibility
from tests.training.trained import attempts, state


def train(run, stop, *, spoiled=None):
    for step in range(run.first_step, stop):
        run.log({"loss": 1 / (step + 1) + (step == spoiled)}, step)
        run.log({"watts": run.attempt_number * 100.0}, step, scope="system")
        if step % 5 == 4:
            run.save_checkpoint(state(step), step)
    return run.attempt_id


def compare(database, attempt, against):
    found = database.transaction(lambda session: verify_reproducibility(session, attempt, against))
    row = next(each for each in attempts(database) if each.id == attempt)
    assert (row.verified_level, row.verified_against_id) == (found.level, against)
    return found


@pytest.fixture
def straight(begin):
    with begin(name="straight") as run:
        return train(run, 20)


def test_a_run_done_again_proves_l1(begin, database, straight):
    with begin(name="again") as run:
        again = train(run, 20)
    found = compare(database, again, straight)
    assert (found.level, found.point_count, found.checkpoint_count, found.is_equal) == ("L1", 20, 4, True)


def test_a_run_that_was_resumed_proves_l2(begin, database, straight):
    with begin(name="resumed") as run:
        train(run, 12)
    with begin(name="resumed") as run:
        assert run.first_step == 10
        resumed = train(run, 20)
    found = compare(database, resumed, straight)
    assert (found.level, found.point_count, found.checkpoint_count) == ("L2", 10, 2)


def test_a_difference_is_told_by_its_step(begin, database, straight):
    with begin(name="spoiled", capture=True) as run:
        spoiled = train(run, 20, spoiled=7)
    found = compare(database, spoiled, straight)
    assert (found.level, found.differing_points, found.differing_checkpoints, found.first_difference) == ("L0", 1, 0, 7)


def test_without_provenance_a_difference_proves_nothing(begin, database, straight):
    with begin(name="spoiled") as run:
        train(run, 3, spoiled=1)
        spoiled = run.attempt_id
    assert compare(database, spoiled, straight).level is None


def test_what_both_have_of_one_ancestor_proves_nothing(begin, database, straight):
    with begin(name="straight") as run:
        train(run, 30)
        child = run.attempt_id
    for pair in ((straight, child), (child, straight)):
        with pytest.raises(CheckpointError, match="no metric"):
            database.transaction(lambda session, pair=pair: verify_reproducibility(session, *pair))


def test_metrics_alone_do_not_prove_a_resume(begin, database, straight):
    for stop in (12, 14):
        with begin(name="resumed") as run:
            train(run, stop)
            resumed = run.attempt_id
    found = compare(database, resumed, straight)
    assert (found.is_equal, found.point_count, found.checkpoint_count, found.level) == (True, 4, 0, None)


def test_nothing_in_common_is_no_comparison(begin, database, straight):
    with begin(name="silent") as run:
        silent = run.attempt_id
    for other in (straight, silent):
        with pytest.raises(CheckpointError, match=r"give another|no metric"):
            database.transaction(lambda session, other=other: verify_reproducibility(session, silent, other))
