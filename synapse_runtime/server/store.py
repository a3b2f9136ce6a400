"""What the server stores: plugins, releases, jobs, their events and output, tokens. The only module that knows SQL.

The database is SQLite in WAL mode. A job's events and console lines are numbered without gaps by a counter in its row,
which a transaction updates first, so the same statements are safe with row locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    create_engine,
    delete,
    event,
    func,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.exc import OperationalError

from synapse_runtime.run_record import to_json
from synapse_runtime.server.schema import (
    CONSOLE_LINES,
    IDEMPOTENCY_KEYS,
    JOB_EVENTS,
    JOBS,
    LOGS,
    METADATA,
    PLUGINS,
    RELEASES,
    SERVE_APPLICATIONS,
    TOKENS,
    VERSION,
)

PENDING: Final = "PENDING"
RUNNING: Final = "RUNNING"
SUCCEEDED: Final = "SUCCEEDED"
FAILED: Final = "FAILED"
STOPPED: Final = "STOPPED"
ENDED: Final = frozenset({SUCCEEDED, FAILED, STOPPED})
_NEXT: Final = {PENDING: {RUNNING, STOPPED, FAILED}, RUNNING: ENDED}

# How long to wait for another process that writes; the server itself writes one transaction at a time.
_BUSY_SECONDS = 2.0


class StoreUnavailable(Exception):
    """The database cannot be used now: it is locked, or its disk is full. Nothing was stored."""


class DataInUse(Exception):
    """Another server uses the data directory."""


class InvalidTransition(Exception):
    """A job cannot change from its status to this one.

    Args:
        status: Its status.
        wanted: The status that was requested.
    """

    def __init__(self, status: str, wanted: str) -> None:
        super().__init__(f"the job is {status} and cannot become {wanted}")
        self.status = status


class JobExists(Exception):
    """There is a job with this id."""


class KeyReused(Exception):
    """An idempotency key was used before, with another body."""


class ReleaseExists(Exception):
    """The plugin has a release of this version, which only a debug release replaces."""


@dataclass(frozen=True)
class PluginRow:
    """A plugin."""

    id: int
    code: str
    name: str
    category: str
    description: str
    is_public: bool
    is_active: bool
    system_only: bool
    detail: Any
    created: float


@dataclass(frozen=True)
class ReleaseRow:
    """A release: uploaded, or the directory of a plugin that is read live.

    Attributes:
        directory: The directory of a live plugin.
        content: SHA-256 of its files, as `releases.content_hash` computes it.
        archive: SHA-256 of the uploaded zip file.
        config: The content of its config file.
    """

    id: int
    plugin_id: int
    version: str
    directory: str | None
    is_live: bool
    debug: bool
    content: str
    archive: str | None
    config: Any
    requirements: Any
    created: float
    code: str = ""


@dataclass(frozen=True)
class Job:
    """A job. Times are seconds since the epoch."""

    number: int
    id: str
    owner: str
    status: str
    plugin_id: int
    release_id: int
    plugin: str
    version: str
    content: str
    action: str
    params: Any
    agent: int
    request: Any
    progress_record: Any
    metrics_record: Any
    result: Any
    meta: Any
    record: str | None = field(repr=False)
    last_event: int
    last_line: int
    log_bytes: int
    created: float
    modified: float
    started: float | None
    completed: float | None

    @property
    def has_ended(self) -> bool:
        """Whether its status is final."""
        return self.status in ENDED


@dataclass(frozen=True)
class NewJob:
    """What a job is created from."""

    owner: str
    release: ReleaseRow
    action: str
    params: Any
    agent: int = 1
    request: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None


@dataclass(frozen=True)
class EventRow:
    """An event of a job: its number from 1, its kind, and its data as JSON."""

    number: int
    kind: str
    data: str


@dataclass
class Batch:
    """What a run has emitted since the last batch.

    Attributes:
        events: Kind and data of each event.
        lines: Whole lines of output.
        logs: Entries of the job's log, as `POST logs/` takes them.
        columns: Columns of the job to set, such as its progress.
        log_bytes: The size of its output.
    """

    events: list[tuple[str, Mapping[str, Any] | Any]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    logs: list[dict[str, Any]] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)
    log_bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.events or self.lines or self.logs or self.columns)


@dataclass(frozen=True)
class ServeApplication:
    """An application that a deployment has registered.

    Attributes:
        job_id: The job that has deployed it.
        status: Its status when it was registered, in the words of Ray Serve.
        data: What else is known of it.
    """

    id: int
    job_id: str
    status: str
    data: Any
    created: float


@dataclass(frozen=True)
class TokenRow:
    """A token, of which only the hash is stored."""

    id: int
    hash: str
    name: str
    owner: str
    scopes: Any
    job_id: str | None
    created: float
    expires: float | None
    revoked: float | None


class DataLock:
    """The lock of a data directory, held until `release` or the end of this process.

    Raises:
        DataInUse: Another server holds it; the message names the directory and the process.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / "lock"
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._descriptor, 20, 0).decode("ascii", "replace") or "unknown"
            os.close(self._descriptor)
            raise DataInUse(
                f"the data directory {directory} is in use by another server (pid {holder}): stop that one, or choose "
                "another directory with --data"
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Let another server use the directory."""
        os.close(self._descriptor)


class Store:
    """The database. All methods may be called from any thread.

    Args:
        url: A URL of SQLAlchemy, such as `sqlite:////data/synapse.db`.
    """

    def __init__(self, url: str) -> None:
        self._engine = _create_engine(url)
        # SQLite has one writer at a time; waiting here is fair and does not time out.
        self._writing: contextlib.AbstractContextManager[Any] = (
            threading.Lock() if self._engine.dialect.name == "sqlite" else contextlib.nullcontext()
        )
        self._prepare()

    @classmethod
    def in_directory(cls, directory: Path) -> Self:
        """Open the database in a data directory; create it if there is none."""
        return cls(f"sqlite:///{directory / 'synapse.db'}")

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def check(self) -> None:
        """Raise `StoreUnavailable` if the database cannot be used."""
        with self._read() as connection:
            connection.execute(select(1))

    def _prepare(self) -> None:
        """Create the tables, or migrate them. alembic is imported only if there is something to migrate."""
        with self._write() as connection:
            if not inspect(connection).has_table("alembic_version"):
                METADATA.create_all(connection)
                connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
                connection.execute(text("INSERT INTO alembic_version VALUES (:version)"), {"version": VERSION})
                return
            version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
            if version != VERSION:
                migrate(connection)

    @contextlib.contextmanager
    def _read(self) -> Iterator[Connection]:
        with _errors_converted(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def _write(self) -> Iterator[Connection]:
        with _errors_converted(), self._writing, self._engine.connect() as opened:
            connection = opened.execution_options(synapse_writes=True)
            with connection.begin():
                yield connection

    # Plugins and releases

    def plugins(self, **filters: Any) -> list[PluginRow]:
        """Return the plugins whose columns have these values, the newest last."""
        conditions = [PLUGINS.c[name] == value for name, value in filters.items()]
        with self._read() as connection:
            return [PluginRow(**row) for row in connection.execute(select(PLUGINS).where(*conditions)).mappings()]

    def plugin(self, code_or_id: str) -> PluginRow | None:
        """Return a plugin by its code, else by its id."""
        found = self.plugins(code=code_or_id)
        if not found and (number := _as_id(code_or_id)) is not None:
            found = self.plugins(id=number)
        return found[0] if found else None

    def put_plugin(self, code: str, *, only_new: bool = False, **values: Any) -> PluginRow | None:
        """Create or update a plugin.

        Args:
            code: Its code.
            only_new: Return None if it exists, instead of updating it.
            **values: Columns to set.
        """
        with self._write() as connection:
            known = connection.execute(select(PLUGINS.c.id).where(PLUGINS.c.code == code)).scalar()
            if known is not None and only_new:
                return None
            if known is None:
                defaults = {"name": code, "category": "custom", "description": "", "is_public": False}
                defaults |= {"is_active": True, "system_only": False}
                connection.execute(insert(PLUGINS).values(code=code, created=time.time(), **{**defaults, **values}))
            elif values:
                connection.execute(update(PLUGINS).where(PLUGINS.c.id == known).values(**values))
            row = connection.execute(select(PLUGINS).where(PLUGINS.c.code == code)).mappings().one()
        return PluginRow(**row)

    def releases(self, *, limit: int = 10_000, **filters: Any) -> list[ReleaseRow]:
        """Return the releases whose columns have these values, the newest first."""
        conditions: list[ColumnElement[bool]] = [RELEASES.c[name] == value for name, value in filters.items()]
        with self._read() as connection:
            return _releases(connection, *conditions, limit=limit)

    def release(self, release_id: int) -> ReleaseRow | None:
        """Return a release by its id."""
        found = self.releases(id=release_id)
        return found[0] if found else None

    def put_release(self, plugin_id: int, version: str, *, is_live: bool, **values: Any) -> ReleaseRow:
        """Create a release, or replace what it contains: of a live one, or by a debug release.

        Raises:
            ReleaseExists: It exists, and the new one is not a debug release.
        """
        columns = {"debug": False, "directory": None, "archive": None, "config": None, "requirements": None} | values
        with self._write() as connection:
            key = (RELEASES.c.plugin_id == plugin_id, RELEASES.c.version == version, RELEASES.c.is_live == is_live)
            known = connection.execute(select(RELEASES.c.id).where(*key)).scalar()
            if known is None:
                columns |= {"plugin_id": plugin_id, "version": version, "is_live": is_live, "created": time.time()}
                connection.execute(insert(RELEASES).values(**columns))
            elif is_live or columns["debug"]:
                if not is_live:
                    columns["created"] = time.time()
                connection.execute(update(RELEASES).where(RELEASES.c.id == known).values(**columns))
            else:
                raise ReleaseExists
            return _releases(connection, *key)[0]

    # Jobs

    def create_job(self, new: NewJob, key: str | None = None, body_hash: str = "") -> tuple[Job, bool]:
        """Create a job, and return it and whether it is new.

        Args:
            new: The job.
            key: The idempotency key of the request. If a job was created with it, that one is returned.
            body_hash: The hash of the request's body.

        Raises:
            KeyReused: The key was used with another body.
            JobExists: There is a job with the id that was chosen.
        """
        now = time.time()
        with self._write() as connection:
            if key is not None:
                known = connection.execute(
                    select(IDEMPOTENCY_KEYS).where(IDEMPOTENCY_KEYS.c.owner == new.owner, IDEMPOTENCY_KEYS.c.key == key)
                ).first()
                if known is not None:
                    if known.body_hash != body_hash:
                        raise KeyReused
                    found = _job(connection, known.job_id)
                    if found is not None:
                        return found, False
                    connection.execute(delete(IDEMPOTENCY_KEYS).where(IDEMPOTENCY_KEYS.c.job_id == known.job_id))
            job_id = new.id or str(uuid.uuid4())
            if new.id is not None and _job(connection, job_id) is not None:
                raise JobExists
            release = new.release
            connection.execute(
                insert(JOBS).values(
                    id=job_id,
                    owner=new.owner,
                    status=PENDING,
                    plugin_id=release.plugin_id,
                    release_id=release.id,
                    plugin=release.code,
                    version=release.version,
                    content=release.content,
                    action=new.action,
                    params=new.params,
                    agent=new.agent,
                    request=dict(new.request),
                    progress_record={},
                    metrics_record={},
                    meta={},
                    last_event=0,
                    last_line=0,
                    log_bytes=0,
                    created=now,
                    modified=now,
                )
            )
            _add_events(connection, job_id, [("status", {"status": PENDING})])
            if key is not None:
                connection.execute(
                    insert(IDEMPOTENCY_KEYS).values(
                        owner=new.owner, key=key, body_hash=body_hash, job_id=job_id, created=now
                    )
                )
            job = _job(connection, job_id)
        assert job is not None
        return job, True

    def known_key(self, owner: str, key: str, body_hash: str) -> Job | None:
        """Return the job that was created with an idempotency key.

        Raises:
            KeyReused: The key was used with another body.
        """
        with self._read() as connection:
            known = connection.execute(
                select(IDEMPOTENCY_KEYS).where(IDEMPOTENCY_KEYS.c.owner == owner, IDEMPOTENCY_KEYS.c.key == key)
            ).first()
            if known is None:
                return None
            if known.body_hash != body_hash:
                raise KeyReused
            return _job(connection, known.job_id)

    def job(self, job_id: str) -> Job | None:
        """Return a job."""
        with self._read() as connection:
            return _job(connection, job_id)

    def jobs(self, *, before: int | None = None, offset: int = 0, limit: int, **filters: Any) -> tuple[list[Job], int]:
        """Return jobs, the newest first, and how many there are in all.

        Args:
            before: Only those with a smaller number.
            offset: How many to skip.
            limit: How many to return.
            **filters: Values of columns.
        """
        conditions = [JOBS.c[name] == value for name, value in filters.items()]
        with self._read() as connection:
            count = connection.execute(select(func.count()).select_from(JOBS).where(*conditions)).scalar_one()
            query = select(JOBS).where(*conditions).order_by(JOBS.c.number.desc()).offset(offset).limit(limit)
            if before is not None:
                query = query.where(JOBS.c.number < before)
            return [Job(**row) for row in connection.execute(query).mappings()], count

    def queue_position(self, job: Job) -> int:
        """Return the position of a pending job in the queue, from 1."""
        with self._read() as connection:
            query = select(func.count()).select_from(JOBS).where(JOBS.c.status == PENDING, JOBS.c.number <= job.number)
            return connection.execute(query).scalar_one()

    def set_status(self, job_id: str, status: str, batch: Batch | None = None, **columns: Any) -> Job | None:
        """Change a job's status, after adding a batch of what its run has emitted.

        A final status onto itself changes nothing but the columns.

        Returns:
            The job; None if it does not exist.

        Raises:
            InvalidTransition: Its status does not permit that.
        """
        now = time.time()
        with self._write() as connection:
            current = connection.execute(select(JOBS.c.status).where(JOBS.c.id == job_id).with_for_update()).scalar()
            if current is None:
                return None
            if current != status and status not in _NEXT.get(current, ()):
                raise InvalidTransition(current, status)
            if batch is not None and current not in ENDED:
                _add_batch(connection, job_id, batch)
            if current != status:
                columns["status"] = status
                if status == RUNNING:
                    columns["started"] = now
                elif status in ENDED:
                    columns["completed"] = now
                kind = "end" if status in ENDED else "status"
                _add_events(connection, job_id, [(kind, {"status": status})])
            connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(modified=now, **columns))
            return _job(connection, job_id)

    def update_job(self, job_id: str, **columns: Any) -> Job | None:
        """Set columns of a job other than its status, and return it; None if it does not exist."""
        with self._write() as connection:
            connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(modified=time.time(), **columns))
            return _job(connection, job_id)

    def append(self, job_id: str, batch: Batch) -> None:
        """Add what a run has emitted, unless the job has ended."""
        with self._write() as connection:
            status = connection.execute(select(JOBS.c.status).where(JOBS.c.id == job_id).with_for_update()).scalar()
            if status is not None and status not in ENDED:
                _add_batch(connection, job_id, batch)

    def events(self, job_id: str, after: int = 0, limit: int = 1000) -> list[EventRow]:
        """Return the events of a job with larger numbers than `after`, in order."""
        query = (
            select(JOB_EVENTS.c.number, JOB_EVENTS.c.kind, JOB_EVENTS.c.data)
            .where(JOB_EVENTS.c.job_id == job_id, JOB_EVENTS.c.number > after)
            .order_by(JOB_EVENTS.c.number)
            .limit(limit)
        )
        with self._read() as connection:
            return [EventRow(*row) for row in connection.execute(query)]

    def lines(self, job_id: str, after: int = 0, limit: int = 1_000_000) -> list[tuple[int, str]]:
        """Return the console lines of a job with larger numbers than `after`, in order, with their numbers."""
        query = (
            select(CONSOLE_LINES.c.number, CONSOLE_LINES.c.text)
            .where(CONSOLE_LINES.c.job_id == job_id, CONSOLE_LINES.c.number > after)
            .order_by(CONSOLE_LINES.c.number)
            .limit(limit)
        )
        with self._read() as connection:
            return [(row.number, row.text) for row in connection.execute(query)]

    def replace_lines(self, job_id: str, lines: list[str]) -> None:
        """Replace the console lines of a job. Their numbers go on, so that who follows them sees the new ones."""
        with self._write() as connection:
            connection.execute(delete(CONSOLE_LINES).where(CONSOLE_LINES.c.job_id == job_id))
            _add_batch(connection, job_id, Batch(lines=lines))

    def fail_unfinished(self, message: str, meta: Mapping[str, Any]) -> list[str]:
        """Mark all jobs that have not ended as failed, and return their ids."""
        now = time.time()
        with self._write() as connection:
            found = [*connection.execute(select(JOBS.c.id).where(JOBS.c.status.in_((PENDING, RUNNING)))).scalars()]
            for job_id in found:
                _add_batch(connection, job_id, Batch(lines=[message + "\n"]))
                _add_events(connection, job_id, [("end", {"status": FAILED})])
                connection.execute(
                    update(JOBS)
                    .where(JOBS.c.id == job_id)
                    .values(status=FAILED, result={"error": message}, meta=dict(meta), completed=now, modified=now)
                )
            connection.execute(
                update(TOKENS).where(TOKENS.c.job_id.is_not(None), TOKENS.c.revoked.is_(None)).values(revoked=now)
            )
        return found

    def delete_job(self, job_id: str) -> None:
        """Delete a job and all that belongs to it."""
        with self._write() as connection:
            for table in (JOB_EVENTS, CONSOLE_LINES, LOGS, SERVE_APPLICATIONS, IDEMPOTENCY_KEYS, TOKENS):
                connection.execute(delete(table).where(table.c.job_id == job_id))
            connection.execute(delete(JOBS).where(JOBS.c.id == job_id))

    def reset(self) -> None:
        """Delete all jobs and uploaded releases. Tokens that are not of jobs stay, and so do live plugins."""
        with self._write() as connection:
            for table in (JOB_EVENTS, CONSOLE_LINES, LOGS, SERVE_APPLICATIONS, IDEMPOTENCY_KEYS, JOBS):
                connection.execute(delete(table))
            connection.execute(delete(TOKENS).where(TOKENS.c.job_id.is_not(None)))
            connection.execute(delete(RELEASES).where(RELEASES.c.is_live.is_(False)))
            live = select(RELEASES.c.plugin_id)
            connection.execute(delete(PLUGINS).where(PLUGINS.c.id.not_in(live)))

    # Logs

    def add_logs(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Add entries to the log of jobs; each has the columns of the table but `created`."""
        now = time.time()
        with self._write() as connection:
            connection.execute(insert(LOGS), [{**entry, "created": now} for entry in entries])

    def logs(self, *, offset: int, limit: int, owner: str | None, **filters: Any) -> tuple[list[dict[str, Any]], int]:
        """Return log entries, oldest first, and how many there are in all.

        Args:
            offset: How many to skip.
            limit: How many to return.
            owner: Only those of jobs of this owner; None for all.
            **filters: Values of columns.
        """
        conditions = [LOGS.c[name] == value for name, value in filters.items()]
        if owner is not None:
            conditions.append(LOGS.c.owner == owner)
        with self._read() as connection:
            count = connection.execute(select(func.count()).select_from(LOGS).where(*conditions)).scalar_one()
            query = select(LOGS).where(*conditions).order_by(LOGS.c.id).offset(offset).limit(limit)
            return [dict(row) for row in connection.execute(query).mappings()], count

    # Serve applications

    def add_serve_application(self, job_id: str, status: str, data: Any) -> ServeApplication:
        """Register an application of a job."""
        values = {"job_id": job_id, "status": status, "data": data, "created": time.time()}
        with self._write() as connection:
            query = insert(SERVE_APPLICATIONS).values(**values).returning(SERVE_APPLICATIONS.c.id)
            return ServeApplication(connection.execute(query).scalar_one(), **values)

    def serve_applications(self, *, offset: int, limit: int, **filters: Any) -> tuple[list[ServeApplication], int]:
        """Return applications, the newest first, and how many there are in all.

        Args:
            offset: How many to skip.
            limit: How many to return.
            **filters: Values of columns of their jobs.
        """
        source = SERVE_APPLICATIONS.join(JOBS, JOBS.c.id == SERVE_APPLICATIONS.c.job_id)
        conditions = [JOBS.c[name] == value for name, value in filters.items()]
        with self._read() as connection:
            count = connection.execute(select(func.count()).select_from(source).where(*conditions)).scalar_one()
            query = select(SERVE_APPLICATIONS).select_from(source).where(*conditions)
            query = query.order_by(SERVE_APPLICATIONS.c.id.desc()).offset(offset).limit(limit)
            return [ServeApplication(**row) for row in connection.execute(query).mappings()], count

    # Tokens

    def add_token(
        self,
        token: str,
        *,
        name: str,
        owner: str,
        scopes: Sequence[str],
        job_id: str | None = None,
        expires: float | None = None,
    ) -> None:
        """Store a token's hash."""
        values = {"hash": hashed(token), "name": name, "owner": owner, "scopes": [*scopes], "job_id": job_id}
        with self._write() as connection:
            connection.execute(insert(TOKENS).values(created=time.time(), expires=expires, **values))

    def token(self, token_hash: str) -> TokenRow | None:
        """Return a token by its hash, whether it is valid or not."""
        with self._read() as connection:
            row = connection.execute(select(TOKENS).where(TOKENS.c.hash == token_hash)).mappings().first()
            return None if row is None else TokenRow(**row)

    def tokens(self) -> list[TokenRow]:
        """Return all tokens but those of runs."""
        with self._read() as connection:
            query = select(TOKENS).where(TOKENS.c.job_id.is_(None)).order_by(TOKENS.c.id)
            return [TokenRow(**row) for row in connection.execute(query).mappings()]

    def revoke_token(self, token_id: int | None = None, *, job_id: str | None = None) -> bool:
        """Revoke a token by its id, or that of a job; return whether there was one that was not revoked yet."""
        which = TOKENS.c.id == token_id if job_id is None else TOKENS.c.job_id == job_id
        with self._write() as connection:
            changed = connection.execute(
                update(TOKENS).where(which, TOKENS.c.revoked.is_(None)).values(revoked=time.time())
            )
            return bool(changed.rowcount)


def hashed(token: str) -> str:
    """Return the SHA-256 of a token, in hexadecimal."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def migrate(connection: Connection, version: str = VERSION) -> None:
    """Migrate a database to a version, or create its tables."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, version)


def _create_engine(url: str) -> Engine:
    engine = create_engine(url)
    if engine.dialect.name != "sqlite":
        return engine

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions are begun below
        connection.execute(f"PRAGMA busy_timeout={int(_BUSY_SECONDS * 1000)}")
        for setting in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {setting}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("synapse_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


@contextlib.contextmanager
def _errors_converted() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        raise StoreUnavailable(f"the database cannot be used: {error.orig}") from error


def _job(connection: Connection, job_id: str) -> Job | None:
    row = connection.execute(select(JOBS).where(JOBS.c.id == job_id)).mappings().first()
    return None if row is None else Job(**row)


def _releases(connection: Connection, *conditions: ColumnElement[bool], limit: int = 1) -> list[ReleaseRow]:
    query = (
        select(RELEASES, PLUGINS.c.code)
        .join(PLUGINS, PLUGINS.c.id == RELEASES.c.plugin_id)
        .where(*conditions)
        .order_by(RELEASES.c.created.desc(), RELEASES.c.id.desc())
        .limit(limit)
    )
    return [ReleaseRow(**row) for row in connection.execute(query).mappings()]


def _add_batch(connection: Connection, job_id: str, batch: Batch) -> None:
    _add_events(connection, job_id, batch.events)
    if batch.lines:
        last = _advance(connection, job_id, "last_line", len(batch.lines))
        first = last - len(batch.lines) + 1
        connection.execute(
            insert(CONSOLE_LINES),
            [{"job_id": job_id, "number": number, "text": line} for number, line in enumerate(batch.lines, first)],
        )
    if batch.logs:
        now = time.time()
        connection.execute(insert(LOGS), [{**entry, "job_id": job_id, "created": now} for entry in batch.logs])
    columns: dict[str, Any] = {**batch.columns}
    if batch.log_bytes:
        columns["log_bytes"] = JOBS.c.log_bytes + batch.log_bytes
    if columns:
        connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(modified=time.time(), **columns))


def _add_events(connection: Connection, job_id: str, events: Sequence[tuple[str, Any]]) -> None:
    if not events:
        return
    last = _advance(connection, job_id, "last_event", len(events))
    first = last - len(events) + 1
    connection.execute(
        insert(JOB_EVENTS),
        [
            {"job_id": job_id, "number": number, "kind": kind, "data": to_json(data)}
            for number, (kind, data) in enumerate(events, first)
        ],
    )


def _advance(connection: Connection, job_id: str, counter: str, count: int) -> int:
    """Add to a counter of a job, which locks its row, and return the new value."""
    column = JOBS.c[counter]
    query = update(JOBS).where(JOBS.c.id == job_id).values({counter: column + count}).returning(column)
    value: int = connection.execute(query).scalar_one()
    return value


def _as_id(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None
