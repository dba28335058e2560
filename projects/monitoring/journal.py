"""The journal of predictions: one row in a database for each image that was answered.

SQLite by default, a single file. For PostgreSQL change one line, `URL`, or set the variable JOURNAL_URL.
"""

import os

import numpy as np  # noqa: F401 (for your answers)
from features import QUANTITIES, WATCHED  # noqa: F401
from sqlalchemy import (
    Column,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    func,
    insert,  # noqa: F401
    select,
)

URL = os.environ.get("JOURNAL_URL", "sqlite:///journal.db")  # "postgresql+psycopg://user:password@host/database"

TABLE = Table(
    "predictions",
    MetaData(),
    Column("id", Integer, primary_key=True),  # counts up by itself
    Column("request", String(64), nullable=False, index=True),
    Column("time", Float, nullable=False),  # seconds since 1970
    *(Column(name, Float, nullable=False) for name in QUANTITIES),
    Column("class", Integer, nullable=False),
)


def open_journal(url=URL):
    """Return an engine (a pool of connections) for a database, in which the table of predictions exists."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _careful)
    TABLE.metadata.create_all(engine)
    return engine


def _careful(connection, record):
    """Let SQLite wait for others instead of failing, and reach the disk with every commit."""
    for line in ("busy_timeout = 10000", "journal_mode = WAL", "synchronous = FULL"):
        connection.execute(f"PRAGMA {line}")


def count_rows(engine):
    """Return how many predictions the journal holds."""
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(TABLE))


# TODO journal-record  (10 points, ~25 min)
def record(engine, request, time, watched):
    """Write the predictions of one request; once this function returns, nothing can lose them.

    All of them are written or, when anything is wrong with one, none; then the error is raised, and the journal works
    on.

    Args:
        engine: from `open_journal`.
        request: id of the request, one string for all its images.
        time: when it was answered, in seconds since 1970.
        watched: numbers (N, F), a row for each image in the order of the request, a column for each name in `WATCHED`.
            With N = 0 nothing is written.

    Raises:
        ValueError: `watched` holds a number that is not finite (SQLite would store NaN as NULL).
    """
    raise NotImplementedError("journal-record")


# TODO journal-recent  (6 points, ~20 min)
def recent(engine, count):
    """Return the latest predictions, as rows to measure drift with.

    The database is to send these rows alone, not the whole table.

    Args:
        engine: from `open_journal`.
        count: how many rows at most.

    Returns:
        A list of lists of numbers, (count, F) or fewer rows where there are not as many: the oldest of them first,
        columns in the order of `WATCHED`. Later means a higher `id`, whatever the clock said.
    """
    raise NotImplementedError("journal-recent")
