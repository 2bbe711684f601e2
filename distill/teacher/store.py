"""Two SQLite files behind one group commit: the answers, shared by all runs, and the money of one run.

An awaited write is on the disk. Knows no prices and no HTTP.
"""

import asyncio
import contextlib
import fcntl
import json
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from edgestill.distill.base import cache_folder
from edgestill.distill.recipe import Recipe
from edgestill.distill.teacher.prompt import Dialect, first_dialect
from edgestill.runtime.errors import EdgestillError
from edgestill.runtime.manifest import disk_error

SPEND_NAME = "spend.sqlite"
ANSWERS = """
create table if not exists answers(key text primary key, body blob not null, attempt text not null) without rowid;
create table if not exists dialects(
  host text, model text, wanted text, dialects text not null, primary key(host, model, wanted));
"""
# state: open (sent, or about to be), settled (usage known), free (the endpoint says it did nothing), worst (unknown)
SPEND = """
create table if not exists attempts(
  id integer primary key, key text not null, purpose text not null, split text not null, state text not null,
  prompt_tokens integer not null, cached_tokens integer not null, completion_tokens integer not null, batch text,
  seller text not null);
create table if not exists prices(seller text primary key, price text not null);
create index if not exists open_attempts on attempts(state) where state = 'open';
create table if not exists failures(key text primary key, detail text not null);
create table if not exists batches(id text primary key, remote_id text, state text not null);
create table if not exists run(id text primary key);
"""

Write = tuple[str, tuple[Any, ...]]


def cache_path() -> Path:
    """Where the answers of all runs are kept."""
    return cache_folder() / "teacher.sqlite"


class Store:
    """The cache of answers and the spend record of a run's folder, open for one process at a time.

    The cache is shared by processes; the spend record is held by a lock that dies with its holder.
    """

    def __init__(self, folder: Path, cache: Path) -> None:
        """Open or make both files.

        Raises:
            EdgestillError: another process works on `folder`, or a file is no SQLite file or cannot be written.
        """
        self._lock = _lock(folder)
        self.cache_path, self.spend_path = cache, folder / SPEND_NAME
        self._cache, self._spend = _open(cache, ANSWERS), _open(self.spend_path, SPEND)
        self._reader = _open(cache, "")
        self._spend.execute("insert into run select lower(hex(randomblob(8))) where not exists (select 1 from run)")
        self.run_id = str(self._spend.execute("select id from run").fetchone()[0])
        self._pending: list[tuple[list[Write], list[Write], asyncio.Future[None]]] = []
        self._flushing: asyncio.Task[None] | None = None
        self._commits = threading.Lock()  # one transaction at a time: the loop and its executor share the connections

    def close(self) -> None:
        """Close both files and let go of the folder."""
        for connection in (self._reader, self._cache, self._spend):
            connection.close()
        self._lock.close()

    def answer(self, key: str) -> dict[str, Any] | None:
        """The stored response for a request's key."""
        stored = self.bought(key)
        return None if stored is None else stored[0]

    def bought(self, key: str) -> tuple[dict[str, Any], str] | None:
        """The stored response and which attempt of which run bought it, "run:number"."""
        try:
            row = self._reader.execute("select body, attempt from answers where key = ?", (key,)).fetchone()
            return None if row is None else (json.loads(zlib.decompress(row[0])), str(row[1]))
        except (sqlite3.DatabaseError, zlib.error, ValueError) as error:
            raise EdgestillError(
                f"{self.cache_path} is damaged: {error}", "move it away; answers are bought again"
            ) from None

    def spend(self, query: str, values: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:
        """Read the spend record."""
        return self._spend.execute(query, values)

    def write_now(self, spend: list[Write], answers: list[Write] | None = None) -> None:
        """Write and wait for the disk, outside an event loop."""
        self._commit(answers or [], spend)

    async def write(self, spend: list[Write], answers: list[Write] | None = None) -> None:
        """Write in one commit with whatever else is waiting; returns when it is on the disk.

        Answers are committed before the spend record, so that a settled attempt has its answer.
        """
        done = asyncio.get_running_loop().create_future()
        self._pending.append((answers or [], spend, done))
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush())
        await done

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._pending:
                group, self._pending = self._pending, []
                answers = [write for first, _, _ in group for write in first]
                spend = [write for _, second, _ in group for write in second]
                error: Exception | None = None
                try:
                    await loop.run_in_executor(None, self._commit, answers, spend)
                except Exception as failed:  # whatever it was, those who wait for this commit must hear of it
                    error = failed
                for _, _, done in group:
                    if not done.done():
                        done.set_result(None) if error is None else done.set_exception(error)
        finally:
            self._flushing = None

    def _commit(self, answers: list[Write], spend: list[Write]) -> None:
        with self._commits:
            self._commit_both(answers, spend)

    def _commit_both(self, answers: list[Write], spend: list[Write]) -> None:
        for path, connection, writes in (
            (self.cache_path, self._cache, answers),
            (self.spend_path, self._spend, spend),
        ):
            if not writes:
                continue
            try:
                connection.execute("begin immediate")
                for statement, values in writes:
                    connection.execute(statement, values)
                connection.execute("commit")
            except Exception as error:
                if connection.in_transaction:
                    connection.execute("rollback")
                raise disk_error(path, error) from error


def cached_answers(path: Path) -> Callable[[str], dict[str, Any] | None]:
    """A lookup that only reads: it makes no file and takes no lock."""
    connection = _read_only(path)
    if connection is None:
        return lambda key: None
    select = connection.execute

    def lookup(key: str) -> dict[str, Any] | None:
        row = select("select body from answers where key = ?", (key,)).fetchone()
        return None if row is None else json.loads(zlib.decompress(row[0]))

    return lookup


def known_dialects(path: Path, recipe: Recipe, host: str, model: str) -> list[Dialect]:
    """The dialects that an endpoint was spoken to in, the one that it accepts last; none when it was never asked.

    What was learnt holds for a wish: with another `answer_format` or `logprobs` the endpoint is asked anew.
    """
    connection = _read_only(path)
    if connection is None:
        return []
    query = "select dialects from dialects where host = ? and model = ? and wanted = ?"
    with contextlib.closing(connection):
        row = connection.execute(query, (host, model, json.dumps(vars(first_dialect(recipe))))).fetchone()
    return [] if row is None else [Dialect(**dialect) for dialect in json.loads(row[0])]


def _read_only(path: Path) -> sqlite3.Connection | None:
    """A connection that only reads and makes no file; None where nothing was ever kept."""
    if not path.is_file():
        return None
    quiet = "" if path.with_name(path.name + "-wal").exists() else "&immutable=1"  # else SQLite makes side files
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro{quiet}", uri=True, timeout=60)
        tables = {name for (name,) in connection.execute("select name from sqlite_master")}
    except sqlite3.DatabaseError as error:
        hint = "move it away; answers in it are then bought again"
        raise EdgestillError(f"{path} cannot be opened: {error}", hint) from None
    return connection if {"answers", "dialects"} <= tables else None


def store_answer(key: str, body: dict[str, Any], attempt: str) -> Write:
    """The write that keeps a response; the first answer to a key stays."""
    packed = zlib.compress(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(), 1)
    return "insert into answers values(?, ?, ?) on conflict(key) do nothing", (key, packed, attempt)


def store_dialects(host: str, model: str, wanted: Dialect, spoken: list[Dialect]) -> Write:
    """The write that remembers which dialects an endpoint was spoken to in, the accepted one last."""
    values = (host, model, json.dumps(vars(wanted)), json.dumps([vars(dialect) for dialect in spoken]))
    return "insert or replace into dialects values(?, ?, ?, ?)", values


def _open(path: Path, schema: str) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")  # a commit outlives a power cut, not only a kill
        connection.executescript(schema)
    except sqlite3.DatabaseError as error:
        hint = "move it away; answers in it are then bought again" if schema == ANSWERS else "move it away"
        raise EdgestillError(f"{path} cannot be opened: {error}", hint) from None
    return connection


def _lock(folder: Path) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise EdgestillError(
            f"another edgestill annotate works on {folder}", "wait for it, or name --out DIR"
        ) from None
    return file
