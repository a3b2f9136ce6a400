"""The tables of the store. A change here needs a migration in `migrations/versions`, which a test compares."""

from __future__ import annotations

import json
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeDecorator

# The newest migration.
VERSION: Final = "0002"
METADATA: Final = MetaData()


class Json(TypeDecorator[Any]):
    """JSON as text, with the extensions of Python: the v1 API takes and gives a bare NaN."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """Write JSON in ASCII; None is NULL."""
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Read JSON."""
        return None if value is None else json.loads(value)


# SQLite numbers rows only in a column of exactly this type.
_Number = BigInteger().with_variant(Integer(), "sqlite")

PLUGINS: Final = Table(
    "plugins",
    METADATA,
    Column("id", _Number, primary_key=True),
    Column("code", String(200), nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("category", String(100), nullable=False),
    Column("description", Text, nullable=False),
    Column("is_public", Boolean, nullable=False),
    Column("is_active", Boolean, nullable=False),
    Column("system_only", Boolean, nullable=False),
    Column("detail", Json),
    Column("created", Float, nullable=False),
)

RELEASES: Final = Table(
    "releases",
    METADATA,
    Column("id", _Number, primary_key=True),
    Column("plugin_id", ForeignKey("plugins.id"), nullable=False),
    Column("version", String(200), nullable=False),
    Column("directory", Text),  # of a plugin that is read live; NULL for an uploaded release
    Column("is_live", Boolean, nullable=False),
    Column("debug", Boolean, nullable=False),
    Column("content", String(64), nullable=False),  # SHA-256 of its files
    Column("archive", String(64)),  # SHA-256 of the uploaded zip file
    Column("config", Json),
    Column("requirements", Json),
    Column("created", Float, nullable=False),
    UniqueConstraint("plugin_id", "version", "is_live"),
)

JOBS: Final = Table(
    "jobs",
    METADATA,
    Column("number", _Number, primary_key=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("owner", String(200), nullable=False),
    Column("status", String(20), nullable=False),
    Column("plugin_id", ForeignKey("plugins.id"), nullable=False),
    Column("release_id", ForeignKey("releases.id"), nullable=False),
    Column("plugin", String(200), nullable=False),
    Column("version", String(200), nullable=False),
    Column("content", String(64), nullable=False),  # of the release when the job was submitted, later of what ran
    Column("action", String(200), nullable=False),
    Column("params", Json, nullable=False),
    Column("agent", Integer, nullable=False),
    Column("request", Json, nullable=False),  # timeout, language, resources, isolation, labels
    Column("progress_record", Json, nullable=False),
    Column("metrics_record", Json, nullable=False),
    Column("result", Json),
    Column("meta", Json, nullable=False),
    Column("record", Text),  # the run record, without events and output
    Column("last_event", Integer, nullable=False),
    Column("last_line", Integer, nullable=False),
    Column("log_bytes", BigInteger, nullable=False),
    Column("created", Float, nullable=False),
    Column("modified", Float, nullable=False),
    Column("started", Float),
    Column("completed", Float),
    Index("jobs_status", "status"),
)

JOB_EVENTS: Final = Table(
    "job_events",
    METADATA,
    Column("job_id", String(36), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("kind", String(20), nullable=False),
    Column("data", Text, nullable=False),
)

CONSOLE_LINES: Final = Table(
    "console_lines",
    METADATA,
    Column("job_id", String(36), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("text", Json, nullable=False),
)

LOGS: Final = Table(
    "logs",
    METADATA,
    Column("id", _Number, primary_key=True),
    Column("job_id", String(36)),
    Column("owner", String(200), nullable=False),
    Column("event", Text, nullable=False),
    Column("step", Text, nullable=False),
    Column("level", String(20), nullable=False),
    Column("data", Json, nullable=False),
    Column("file", Text),
    Column("datetime", Text, nullable=False),
    Column("created", Float, nullable=False),
    Index("logs_job", "job_id"),
)

SERVE_APPLICATIONS: Final = Table(
    "serve_applications",
    METADATA,
    Column("id", _Number, primary_key=True),
    Column("job_id", String(36), nullable=False),
    Column("status", String(20), nullable=False),
    Column("data", Json, nullable=False),
    Column("created", Float, nullable=False),
    Index("serve_applications_job", "job_id"),
)

TOKENS: Final = Table(
    "tokens",
    METADATA,
    Column("id", _Number, primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("owner", String(200), nullable=False),
    Column("scopes", Json, nullable=False),
    Column("job_id", String(36)),
    Column("created", Float, nullable=False),
    Column("expires", Float),
    Column("revoked", Float),
)

IDEMPOTENCY_KEYS: Final = Table(
    "idempotency_keys",
    METADATA,
    Column("owner", String(200), primary_key=True),
    Column("key", String(200), primary_key=True),
    Column("body_hash", String(64), nullable=False),
    Column("job_id", String(36), nullable=False),
    Column("created", Float, nullable=False),
)
