"""The database: migrations, numbers without gaps, statuses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text

from synapse_runtime.server import store as stores
from synapse_runtime.server.schema import METADATA, VERSION
from synapse_runtime.server.store import Batch, DataInUse, DataLock, InvalidTransition, Job, NewJob, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.in_directory(tmp_path)
    yield store
    store.close()


@pytest.fixture
def job(store: Store) -> Job:
    plugin = store.put_plugin("lab")
    assert plugin is not None
    release = store.put_release(plugin.id, "1.0.0", is_live=False, content="0" * 64)
    return store.create_job(NewJob("somebody", release, "train", {}))[0]


def description(path: Path) -> dict[str, object]:
    engine = create_engine(f"sqlite:///{path}")
    found = inspect(engine)
    shown = {}
    for table in found.get_table_names():
        columns = [(column["name"], str(column["type"]), column["nullable"]) for column in found.get_columns(table)]
        indexes = sorted(str(index["column_names"]) for index in found.get_indexes(table))
        keys = found.get_pk_constraint(table)["constrained_columns"]
        unique = sorted(str(one["column_names"]) for one in found.get_unique_constraints(table))
        foreign = sorted(str(one["constrained_columns"]) for one in found.get_foreign_keys(table))
        shown[table] = (columns, indexes, keys, unique, foreign)
    engine.dispose()
    return shown


def test_migrations_make_the_same_tables_as_the_schema(tmp_path: Path) -> None:
    Store(f"sqlite:///{tmp_path / 'new.db'}").close()
    engine = create_engine(f"sqlite:///{tmp_path / 'migrated.db'}")
    with engine.begin() as connection:
        stores.migrate(connection)
    engine.dispose()
    new, migrated = description(tmp_path / "new.db"), description(tmp_path / "migrated.db")
    assert {*new} == {*METADATA.tables, "alembic_version"}
    assert migrated == new


def test_older_database_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
    store = Store(f"sqlite:///{path}")
    store.check()
    store.close()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == VERSION
    engine.dispose()


def test_migration_keeps_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        stores.migrate(connection, "0001")
        columns = "code, name, category, description, is_public, is_active, system_only, created"
        connection.execute(text(f"INSERT INTO plugins ({columns}) VALUES ('lab', 'Lab', 'custom', '', 0, 1, 0, 0.5)"))
    engine.dispose()
    store = Store(f"sqlite:///{path}")
    assert [plugin.code for plugin in store.plugins()] == ["lab"]
    assert store.serve_applications(offset=0, limit=1) == ([], 0)
    store.close()


def test_numbers_have_no_gaps_whoever_writes(store: Store, job: Job) -> None:
    def write(name: int) -> None:
        for number in range(20):
            store.append(job.id, Batch([("log", {"from": name, "number": number})] * 2, lines=[f"{name} {number}\n"]))

    threads = [threading.Thread(target=write, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = store.events(job.id)
    assert [event.number for event in events] == [*range(1, 8 * 40 + 2)]
    lines = store.lines(job.id)
    assert [number for number, _ in lines] == [*range(1, 161)]
    for name in range(8):
        assert [line for _, line in lines if line.startswith(f"{name} ")] == [
            f"{name} {number}\n" for number in range(20)
        ]


@pytest.mark.parametrize(
    ("steps", "refused"),
    [
        (["RUNNING", "SUCCEEDED"], "RUNNING"),
        (["RUNNING", "FAILED"], "SUCCEEDED"),
        (["STOPPED"], "RUNNING"),
        (["FAILED"], "STOPPED"),
        ([], "SUCCEEDED"),
        (["RUNNING"], "PENDING"),
    ],
)
def test_statuses_change_in_one_direction(store: Store, job: Job, steps: list[str], refused: str) -> None:
    for status in steps:
        changed = store.set_status(job.id, status)
        assert changed is not None
        assert changed.status == status
    with pytest.raises(InvalidTransition):
        store.set_status(job.id, refused)
    again = store.set_status(job.id, steps[-1] if steps else "PENDING")
    assert again is not None
    assert [event.kind for event in store.events(job.id)].count("end") == (again.has_ended)


def test_nothing_follows_the_end(store: Store, job: Job) -> None:
    store.set_status(job.id, "STOPPED")
    store.append(job.id, Batch([("log", {})], lines=["late\n"]))
    assert [event.kind for event in store.events(job.id)] == ["status", "end"]
    assert store.lines(job.id) == []


def test_unfinished_jobs_fail_at_the_next_start(store: Store, job: Job) -> None:
    assert store.fail_unfinished("died", {"error": {"error_type": "infrastructure", "message": "died"}}) == [job.id]
    failed = store.job(job.id)
    assert failed is not None
    assert (failed.status, failed.result) == ("FAILED", {"error": "died"})
    assert [(event.number, event.kind) for event in store.events(job.id)] == [(1, "status"), (2, "end")]
    assert store.fail_unfinished("died", {}) == []


def test_lock_permits_one_server(tmp_path: Path) -> None:
    lock = DataLock(tmp_path)
    with pytest.raises(DataInUse, match="in use by another server"):
        DataLock(tmp_path)
    lock.release()
    DataLock(tmp_path).release()
