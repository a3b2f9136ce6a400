"""The first version."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "plugins",
        sa.Column("id", _NUMBER, primary_key=True),
        sa.Column("code", sa.String(200), nullable=False, unique=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("category", sa.String(100), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("is_public", sa.Boolean, nullable=False),
        sa.Column("is_active", sa.Boolean, nullable=False),
        sa.Column("system_only", sa.Boolean, nullable=False),
        sa.Column("detail", sa.Text),
        sa.Column("created", sa.Float, nullable=False),
    )
    op.create_table(
        "releases",
        sa.Column("id", _NUMBER, primary_key=True),
        sa.Column("plugin_id", _NUMBER, sa.ForeignKey("plugins.id"), nullable=False),
        sa.Column("version", sa.String(200), nullable=False),
        sa.Column("directory", sa.Text),
        sa.Column("is_live", sa.Boolean, nullable=False),
        sa.Column("debug", sa.Boolean, nullable=False),
        sa.Column("content", sa.String(64), nullable=False),
        sa.Column("archive", sa.String(64)),
        sa.Column("config", sa.Text),
        sa.Column("requirements", sa.Text),
        sa.Column("created", sa.Float, nullable=False),
        sa.UniqueConstraint("plugin_id", "version", "is_live"),
    )
    op.create_table(
        "jobs",
        sa.Column("number", _NUMBER, primary_key=True),
        sa.Column("id", sa.String(36), nullable=False, unique=True),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("plugin_id", _NUMBER, sa.ForeignKey("plugins.id"), nullable=False),
        sa.Column("release_id", _NUMBER, sa.ForeignKey("releases.id"), nullable=False),
        sa.Column("plugin", sa.String(200), nullable=False),
        sa.Column("version", sa.String(200), nullable=False),
        sa.Column("content", sa.String(64), nullable=False),
        sa.Column("action", sa.String(200), nullable=False),
        sa.Column("params", sa.Text, nullable=False),
        sa.Column("agent", sa.Integer, nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("progress_record", sa.Text, nullable=False),
        sa.Column("metrics_record", sa.Text, nullable=False),
        sa.Column("result", sa.Text),
        sa.Column("meta", sa.Text, nullable=False),
        sa.Column("record", sa.Text),
        sa.Column("last_event", sa.Integer, nullable=False),
        sa.Column("last_line", sa.Integer, nullable=False),
        sa.Column("log_bytes", sa.BigInteger, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("modified", sa.Float, nullable=False),
        sa.Column("started", sa.Float),
        sa.Column("completed", sa.Float),
    )
    op.create_index("jobs_status", "jobs", ["status"])
    op.create_table(
        "job_events",
        sa.Column("job_id", sa.String(36), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("data", sa.Text, nullable=False),
    )
    op.create_table(
        "console_lines",
        sa.Column("job_id", sa.String(36), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
    )
    op.create_table(
        "logs",
        sa.Column("id", _NUMBER, primary_key=True),
        sa.Column("job_id", sa.String(36)),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("step", sa.Text, nullable=False),
        sa.Column("level", sa.String(20), nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.Column("file", sa.Text),
        sa.Column("datetime", sa.Text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
    )
    op.create_index("logs_job", "logs", ["job_id"])
    op.create_table(
        "tokens",
        sa.Column("id", _NUMBER, primary_key=True),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("job_id", sa.String(36)),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("expires", sa.Float),
        sa.Column("revoked", sa.Float),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("owner", sa.String(200), primary_key=True),
        sa.Column("key", sa.String(200), primary_key=True),
        sa.Column("body_hash", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(36), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
    )


def downgrade() -> None:
    """Remove the tables."""
    for name in ("idempotency_keys", "tokens", "logs", "console_lines", "job_events", "jobs", "releases", "plugins"):
        op.drop_table(name)
