"""A digest of the rows of each table: what must be equal after an upgrade, and after a replay of the log.

Implements the digest, over chosen columns in the order of the key. Leaves out what is compared with what (`upgrading`,
`replay`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from sqlalchemy import Connection, MetaData, Table, inspect, select

READ_ROWS = 2000


def compute_table_digests(connection: Connection, tables: Iterable[Table]) -> dict[str, str]:
    """SHA-256 of the rows of each table, as JSON, in the order of its key; by the table's name."""
    digests = {}
    for table in tables:
        digest = hashlib.sha256()
        query = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=READ_ROWS)
        for row in connection.execute(query):
            digest.update(json.dumps(list(row), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        digests[table.name] = digest.hexdigest()
    return digests


def read_tables(connection: Connection, *, leave_out: Iterable[str]) -> list[Table]:
    """The tables that the database has now, with the columns that they have now, by name."""
    names = sorted(set(inspect(connection).get_table_names()) - set(leave_out))
    return [Table(name, MetaData(), autoload_with=connection, resolve_fks=False) for name in names]
