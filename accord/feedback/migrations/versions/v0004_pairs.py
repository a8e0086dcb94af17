"""Schema version 4: an item knows its pair, so that a pair asked again in a later round goes first to other people."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds the column; items of before have none, and are not known again."""
    op.add_column("items", sa.Column("pair", sa.String(16)))
    op.create_index("items_of_pair", "items", ["pair"])
    op.execute("INSERT INTO schema_version (version) VALUES (4)")
