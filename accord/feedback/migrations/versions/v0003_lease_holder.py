"""Schema version 3: a lease knows which open page holds it, so that a page that closes gives back its own only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Adds the column; leases of before have no holder."""
    op.add_column("leases", sa.Column("holder", sa.String(36)))
    op.execute("INSERT INTO schema_version (version) VALUES (3)")
