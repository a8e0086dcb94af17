"""What Alembic runs to migrate: the steps on the connection that `upgrading` hands over, inside its transaction.

Leaves out offline scripts: an upgrade checks the rows it kept, so it needs the database.
"""

from __future__ import annotations

from alembic import context

from accord.feedback.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
