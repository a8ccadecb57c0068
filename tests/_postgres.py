"""An embedded PostgreSQL for a module or class of tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cbir_connectors.pgvector import Pgvector


@contextmanager
def running_postgres() -> Iterator[Path]:
    """The folder of a server that is kept running, because starting it takes a second.

    Not in pytest's own folder: PostgreSQL does not run as root but as a user of its own, whom every new pytest session
    locks out of there.
    """
    with tempfile.TemporaryDirectory(prefix="cbir-postgres-", ignore_cleanup_errors=True) as folder:
        path = Path(folder, "data")
        keep = Pgvector(path=str(path))
        yield path
        keep.close()
