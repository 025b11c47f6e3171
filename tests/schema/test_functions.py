"""Functions and triggers."""

import datetime as dt
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import ProgrammingError

from arc_halo.errors import LockTimeout
from arc_halo.schema import (
    CachedActivation,
    CachedResponse,
    CacheNamespace,
    InferenceMetric,
    InferenceSession,
    KVCacheBlock,
    Model,
    ModelWeight,
)
from tests.schema.rows import (
    NOON,
    add,
    add_attempt,
    add_block,
    add_checkpoint,
    add_model,
    add_namespace,
    add_run,
    add_tensor,
    add_weight,
    digest,
)


def test_uuid7_has_version_variant_and_the_time_of_now(session):
    made = session.scalar(text("SELECT arc_halo.uuid7()"))
    now = session.scalar(text("SELECT extract(epoch FROM clock_timestamp())"))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert abs((made.int >> 80) / 1000 - float(now)) < 5


def test_uuid7_is_distinct_and_rises_with_the_clock(session):
    # Ids of one microsecond are in no order: at most a few neighbours may be swapped.
    made = session.scalars(text("SELECT arc_halo.uuid7() FROM generate_series(1, 2000)")).all()
    assert len(set(made)) == 2000
    assert max(made[:-100]) < made[-1]
    assert made[0] < min(made[100:])


def test_uuid7_is_the_default_key_of_raw_sql(session):
    made = session.scalar(
        text("INSERT INTO arc_halo.models (name, version, model_type) VALUES ('m', '1', 'x') RETURNING id")
    )
    assert made.version == 7


def test_updated_at_is_written_by_the_database_and_fetched(database):
    with database.session() as session, session.begin():
        model = add_model(session)
    before = model.updated_at
    with database.session() as session, session.begin():
        model = session.merge(model)
        model.status = "trained"
        session.flush()
        assert model.updated_at > before


def test_updated_at_cannot_be_made_up(session):
    add_model(session)
    session.execute(update(Model).values(updated_at=NOON))
    assert session.scalar(select(Model.updated_at == Model.created_at))  # one transaction, one time


def test_the_latest_checkpoint_is_the_one_published_last(session):
    model = add_model(session)
    attempt = add_attempt(session, add_run(session, model))
    add_checkpoint(session, attempt, 200, published_at=NOON)
    rewound = add_checkpoint(session, attempt, 100, published_at=NOON + dt.timedelta(hours=1))
    add_checkpoint(session, attempt, 300, status="pending", published_at=None)
    found = func.arc_halo.get_latest_checkpoint(model.id).table_valued("id", "step")
    assert session.execute(select(found.c.id, found.c.step)).all() == [(rewound.id, 100)]


def test_a_model_without_published_checkpoints_has_no_latest(session):
    model = add_model(session)
    add_checkpoint(session, add_attempt(session, add_run(session, model)), 1, status="failed", published_at=None)
    latest = session.execute(text("SELECT * FROM arc_halo.get_latest_checkpoint(:id)"), {"id": model.id})
    assert latest.all() == []


PAST, FUTURE = func.now() - text("interval '1 second'"), func.now() + text("interval '1 hour'")
EXPIRE = text("SELECT * FROM arc_halo.expire_caches(:rows)")


@pytest.fixture
def expired(session):
    """A chain of blocks: 0 never expires, 1 not yet, 2 expired and is pinned, 3 and 4 expired."""
    namespace = add_namespace(session)
    for number, expiry in enumerate((None, FUTURE, PAST, PAST, PAST)):
        add_block(session, namespace, number, expires_at=expiry, is_pinned=number == 2)
    return namespace


@pytest.mark.usefixtures("expired")
def test_expire_caches_leaves_pinned_and_living_entries(session):
    assert session.execute(EXPIRE, {"rows": 100}).one() == (2, 0, 0)
    assert set(session.scalars(select(KVCacheBlock.position))) == {0, 1, 2}


@pytest.mark.usefixtures("expired")
def test_expire_caches_deletes_tails_first_and_no_more_than_it_may(session):
    left = [
        session.scalar(select(func.max(KVCacheBlock.position)))
        for _ in range(3)
        if session.execute(EXPIRE, {"rows": 1}).one()
    ]
    assert left == [3, 2, 2]


def test_what_has_a_living_successor_does_not_expire(session):
    namespace = add_namespace(session)
    add_block(session, namespace, 0, expires_at=PAST)
    add_block(session, namespace, 1, expires_at=FUTURE)
    assert session.execute(EXPIRE, {"rows": 100}).one() == (0, 0, 0)


def test_expire_caches_deletes_activations_and_frees_their_tensors(session):
    tensor, namespace = add_tensor(session), add_namespace(session, kind="activation", block_token_count=None)
    key = {"tenant_id": 0, "namespace_id": namespace.id, "hook_point": "layers.0", "input_digest": digest("input")}
    add(session, CachedActivation(**key, tensor_id=tensor.id, expires_at=PAST))
    assert session.execute(EXPIRE, {"rows": 1}).one() == (0, 1, 0)
    session.delete(tensor)
    session.flush()


def test_expire_caches_deletes_responses(session):
    namespace = add_namespace(session, kind="response", block_token_count=None)
    asked = {"tenant_id": 0, "namespace_id": namespace.id, "prompt": "?", "response": "!", "stored_nbytes": 2}
    for number, expiry in enumerate((None, FUTURE, PAST)):
        key = {"settings_digest": digest("s"), "prompt_digest": digest(number)}
        add(session, CachedResponse(**asked, **key, expires_at=expiry))
    assert session.execute(EXPIRE, {"rows": 9}).one() == (0, 0, 1)


@pytest.mark.parametrize("retire", ["archive", "change", "delete"])
def test_what_no_model_can_serve_any_more_goes_with_its_namespace(session, retire):
    model = add_model(session, weights_digest=digest("served"))
    kept = add_namespace(session, weights_digest=digest("other"))
    retired = add_namespace(session, weights_digest=digest("served"), is_registered=True)
    for namespace in (kept, retired):
        for number in range(3):
            add_block(session, namespace, number, is_pinned=True)
    assert session.execute(EXPIRE, {"rows": 9}).one() == (0, 0, 0)
    if retire == "delete":
        session.delete(model)
    elif retire == "archive":
        model.status = "archived"
    else:
        model.weights_digest = digest("new")
    session.flush()
    assert [session.execute(EXPIRE, {"rows": 2}).one()[0] for _ in range(3)] == [2, 1, 0]
    assert session.scalars(select(CacheNamespace.id)).all() == [kept.id]


def test_expire_caches_passes_over_entries_in_use(database):
    with database.session() as session, session.begin():
        namespace = add_namespace(session)
        for number in range(2):
            add_block(session, namespace, number, expires_at=NOON - dt.timedelta(days=365))
    with database.session() as reader, database.session() as sweeper:
        reader.execute(select(KVCacheBlock.position).where(KVCacheBlock.position == 0).with_for_update(key_share=True))
        assert sweeper.execute(EXPIRE, {"rows": 10}).one()[0] == 1
        sweeper.commit()


PARTITIONS = text(
    "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
    " WHERE i.inhparent = 'arc_halo.inference_metrics'::regclass ORDER BY c.relname"
)
ENSURE = text("SELECT arc_halo.ensure_time_partitions('arc_halo.inference_metrics', :start, :ahead)")


def test_this_month_and_the_next_two_have_partitions_from_the_start(session):
    assert session.scalar(text("SELECT arc_halo.ensure_time_partitions('arc_halo.inference_metrics')")) == 0
    assert session.scalar(text("SELECT arc_halo.ensure_time_partitions('arc_halo.reactor_metrics')")) == 0
    assert len(session.execute(PARTITIONS).all()) >= 3


def test_time_partitions_are_bounded_by_utc_months_whatever_the_time_zone(session):
    session.execute(text("SET LOCAL TimeZone = 'Pacific/Auckland'"))
    start = dt.datetime(2031, 12, 31, 23, 30, tzinfo=dt.UTC)
    assert session.scalar(ENSURE, {"start": start, "ahead": 1}) == 2
    session.execute(text("SET LOCAL TimeZone = 'UTC'"))
    bounds = dict(session.execute(PARTITIONS).all())
    assert bounds["inference_metrics_2031_12"] == (
        "FOR VALUES FROM ('2031-12-01 00:00:00+00') TO ('2032-01-01 00:00:00+00')"
    )
    assert "inference_metrics_2032_01" in bounds


def test_time_partitions_are_made_once(session):
    start = dt.datetime(2031, 1, 1, tzinfo=dt.UTC)
    assert [session.scalar(ENSURE, {"start": start, "ahead": ahead}) for ahead in (0, 0, 2)] == [1, 0, 2]


def test_a_row_finds_its_new_partition(session):
    model = add_model(session)
    inference = add(session, InferenceSession(model=model))
    late = dt.datetime(2031, 1, 31, tzinfo=dt.UTC)
    session.scalar(ENSURE, {"start": late, "ahead": 0})
    add(session, InferenceMetric(inference_session=inference, request_number=0, recorded_at=late, latency_seconds=1))
    assert session.scalar(text("SELECT count(*) FROM arc_halo.inference_metrics_2031_01")) == 1


def test_time_partitions_made_by_many_at_once_are_made_once(database):
    start = dt.datetime(2031, 1, 1, tzinfo=dt.UTC)

    def ensure(_):
        with database.session() as session, session.begin():
            return session.scalar(ENSURE, {"start": start, "ahead": 5})

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(ensure, range(4))) == 6


@pytest.mark.parametrize("made", ["TABLE {} (id integer)", "TYPE {} AS ENUM ('a')"], ids=["table", "type"])
def test_what_has_a_partitions_name_and_is_none_is_refused(session, made):
    """A type is found where a table that somebody else has just made was not there yet a moment before."""
    session.execute(text("CREATE " + made.format("arc_halo.inference_metrics_2031_05")))
    with pytest.raises(ProgrammingError, match="is no partition of"):
        session.scalar(ENSURE, {"start": dt.datetime(2031, 5, 1, tzinfo=dt.UTC), "ahead": 0})


@pytest.mark.parametrize("table", ["arc_halo.models", "arc_halo.embeddings", "pg_catalog.pg_class"])
def test_only_our_tables_get_time_partitions(session, table):
    with pytest.raises(ProgrammingError, match="no table of schema arc_halo"):
        session.scalar(text("SELECT arc_halo.ensure_time_partitions(:table)"), {"table": table})


@pytest.fixture
def digested(session):
    """A model whose digest is known, and one of its weights."""
    model = add_model(session)
    weight = add_weight(session, model, "w", add_tensor(session))
    set_digest(session, model)
    return model, weight


def set_digest(session, model):
    session.execute(update(Model).where(Model.id == model.id).values(weights_digest=digest("root")))


def digest_of(session, model):
    return session.scalar(select(Model.weights_digest).where(Model.id == model.id))


def change_name(_session, weight):
    weight.name = "v"


def change_tensor(session, weight):
    weight.tensor = add_tensor(session)


def change_model(session, weight):
    weight.model = add_model(session, "other")


def delete(session, weight):
    session.delete(weight)


def add_another(session, weight):
    add_weight(session, weight.model, "another", weight.tensor)


@pytest.mark.parametrize("change", [change_name, change_tensor, change_model, delete, add_another])
def test_any_change_of_weights_forgets_the_digest(session, digested, change):
    model, weight = digested
    change(session, weight)
    session.flush()
    assert digest_of(session, model) is None


def test_the_digest_survives_what_is_no_change_of_weights(session, digested):
    model, weight = digested
    weight.is_trainable, weight.category = False, "norm"
    session.flush()
    assert digest_of(session, model) == digest("root")


def test_the_digests_of_other_models_survive(session, digested):
    model, _weight = digested
    other = add_model(session, "other")
    add_weight(session, other, "w", add_tensor(session))
    assert digest_of(session, model) == digest("root")


def test_a_thousand_weights_update_their_model_once(session):
    model, tensor = add_model(session), add_tensor(session)
    columns = {"model_id": model.id, "tensor_id": tensor.id, "category": "weight"}
    rows = [{**columns, "position": number, "name": str(number)} for number in range(1000)]
    updates = text("SELECT n_tup_upd FROM pg_stat_xact_user_tables WHERE relid = 'arc_halo.models'::regclass")
    before = session.scalar(updates)
    session.execute(insert(ModelWeight).values(rows))
    assert session.scalar(updates) - before == 1


def test_whoever_computes_a_digest_is_not_overtaken_by_a_writer(database):
    # A writer's trigger locks the model even while its digest is null, so a digest computed under that lock is of
    # weights that nobody is changing.
    with database.session() as session, session.begin():
        weight = add_weight(session, add_model(session), "w", add_tensor(session))
    with database.session() as writer, database.session() as computer:
        writer.execute(update(ModelWeight).where(ModelWeight.id == weight.id).values(name="v"))
        computer.execute(text("SET LOCAL lock_timeout = '100ms'"))
        with pytest.raises(LockTimeout):
            computer.execute(select(Model.id).with_for_update())
