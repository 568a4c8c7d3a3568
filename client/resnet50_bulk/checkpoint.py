"""Checkpoint of a bulk run: results on disk, so that an interrupted run can resume.

A SQLite database, `OUT.partial`, with a row for each image. Results are committed together, up to
`COMMIT_IMAGES` at a time: a killed process loses those since the last commit and nothing else. With
the rollback journal a commit writes vectors once, to new pages of the one file; WAL would write
them twice, and needs a second file. docs/adr/0042-embed-checkpoint.md has the measurements.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .provenance import Provenance
from .source import FileFingerprint as FileFingerprint

COMMIT_IMAGES = 256
COMMIT_S = 5.0
_APPLICATION_ID = 0x72353065  # "r50e", in the header of the file
_FORMAT = 1
_SCHEMA = f"""
BEGIN;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_FORMAT};
CREATE TABLE provenance (json TEXT NOT NULL);
CREATE TABLE images (
    id INTEGER PRIMARY KEY,
    path BLOB NOT NULL UNIQUE,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    error TEXT -- NULL if it has a vector
);
CREATE TABLE vectors (id INTEGER PRIMARY KEY REFERENCES images, vector BLOB NOT NULL);
COMMIT;
"""
_SAVE_IMAGE = """
INSERT INTO images (path, size, mtime_ns, error) VALUES (:path, :size, :mtime_ns, :error)
ON CONFLICT (path) DO UPDATE SET
    size = excluded.size, mtime_ns = excluded.mtime_ns, error = excluded.error
"""
_SAVE_VECTOR = """
INSERT INTO vectors SELECT id, :vector FROM images WHERE path = :path
ON CONFLICT (id) DO UPDATE SET vector = excluded.vector
"""
_DROP_VECTOR = "DELETE FROM vectors WHERE id = (SELECT id FROM images WHERE path = :path)"
_FIND = "SELECT size, mtime_ns FROM images WHERE path = ? AND error IS NULL"
_FIND_VECTOR = "SELECT vector FROM images JOIN vectors USING (id) WHERE path = ?"
_RESTART = "start over with --restart"


class EmbeddingSpaceChanged(Exception):
    """The server switched to other weights during the run."""


@dataclass(frozen=True, eq=False)
class ImageResult:
    """The result of one image.

    Attributes:
        vector: [D] of the dtype and dimension of its provenance.
        provenance: Its provenance.
    """

    vector: NDArray[Any]
    provenance: Provenance


class Checkpoint:
    """Results so far, by image path; a context manager that closes the database.

    For one process, and one thread at a time. A checkpoint without results is deleted at its end.

    Args:
        file: File of the database; created if it does not exist.

    Raises:
        ValueError: The file is no checkpoint, or is damaged.
        OSError: It cannot be read or written.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.provenance: Provenance | None = None
        self._pending: list[dict[str, Any]] = []
        self._committed_at = time.monotonic()
        self._closed = False
        if file.exists() and not file.is_file():
            raise ValueError(f"{file} is not a checkpoint but a folder or device: move it away")
        with self._reporting_errors():
            # An absolute path cannot be mistaken for a URI; Lance reads rows in its own thread.
            self._database = sqlite3.connect(
                os.path.abspath(file), timeout=30.0, check_same_thread=False
            )
            try:
                self._open()
            except BaseException:
                self._database.close()
                raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # An error of the database is raised by the call that met it first.
        with suppress(OSError, ValueError):
            if not self._closed and not self._count("images"):
                self.remove()
        self.close()

    def __len__(self) -> int:
        """Return the number of vectors on disk."""
        return 0 if self._closed else self._count("images WHERE error IS NULL")

    def contains(self, path: str) -> bool:
        """Return True if an image's vector is on disk."""
        return self.fingerprint(path) is not None

    def fingerprint(self, path: str) -> FileFingerprint | None:
        """Return the fingerprint of the image file whose vector is on disk, None without one."""
        with self._reporting_errors():
            row = self._database.execute(_FIND, (os.fsencode(path),)).fetchone()
        return None if row is None else FileFingerprint(*row)

    def check(self, provenance: Provenance) -> None:
        """Check that a run's vectors can be added.

        Raises:
            ValueError: They are of another provenance.
        """
        if self.provenance is not None:
            remedy = f"pass the --variant and the options of the interrupted run, or {_RESTART}"
            self.provenance.check(provenance, self.file, remedy)
            if not self.provenance.transform:  # of an earlier version
                self.provenance = replace(self.provenance, transform=provenance.transform)

    def add(self, path: str, fingerprint: FileFingerprint, result: ImageResult) -> None:
        """Add an image's result; it is on disk after the next `flush`.

        Raises:
            EmbeddingSpaceChanged: Its weights differ from those of the earlier ones.
            OSError: The file cannot be written.
        """
        provenance = result.provenance
        if self.provenance is None:
            self.provenance = provenance
        if provenance != self.provenance:
            raise EmbeddingSpaceChanged(
                f"the servers responded with different weights, {self.provenance.space} and"
                f" {provenance.space}, so the vectors are not comparable; pass a --variant that all"
                " servers have"
            )
        vector = np.asarray(result.vector, provenance.row_dtype).tobytes()
        self._add(path, fingerprint, vector=vector, error=None)

    def add_error(self, path: str, fingerprint: FileFingerprint, error: str) -> None:
        """Add the error of an image without an embedding; otherwise as `add`."""
        # Of names in the text that are not UTF-8.
        text = error.encode("utf-8", "backslashreplace").decode()
        self._add(path, fingerprint, vector=None, error=text)

    def flush(self) -> None:
        """Commit the results added since the last flush.

        Raises:
            OSError: The file cannot be written.
        """
        self._committed_at = time.monotonic()
        if not self._pending:
            return
        with self._reporting_errors(), self._database:
            if self.provenance is not None:
                self._database.execute("DELETE FROM provenance")
                self._database.execute(
                    "INSERT INTO provenance VALUES (?)", (self.provenance.to_json(),)
                )
            self._database.executemany(_SAVE_IMAGE, self._pending)
            self._database.executemany(
                _SAVE_VECTOR, (row for row in self._pending if row["error"] is None)
            )
            self._database.executemany(
                _DROP_VECTOR, (row for row in self._pending if row["error"] is not None)
            )
        self._pending.clear()

    def vectors(self, paths: Sequence[str]) -> NDArray[Any]:
        """Return the vectors of images, [N, D] of the provenance's dtype.

        Raises:
            ValueError: The file is damaged.
        """
        assert self.provenance is not None
        dtype = self.provenance.row_dtype
        vectors = np.empty((len(paths), self.provenance.dimension), dtype)
        for row, path in enumerate(paths):
            with self._reporting_errors():
                found = self._database.execute(_FIND_VECTOR, (os.fsencode(path),)).fetchone()
            if found is None or not isinstance(found[0], bytes):
                raise ValueError(f"{self.file}: there is no vector of {path}; {_RESTART}")
            if len(found[0]) != vectors[row].nbytes:
                raise ValueError(f"{self.file}: the vector of {path} is damaged; {_RESTART}")
            vectors[row] = np.frombuffer(found[0], dtype)
        return vectors

    def errors(self) -> Iterator[tuple[str, str]]:
        """Yield the paths and errors of the images without a vector, in order of their results."""
        query = "SELECT path, error FROM images WHERE error IS NOT NULL ORDER BY id"
        with self._reporting_errors():
            for path, error in self._database.execute(query):
                yield os.fsdecode(path), error

    def remove(self) -> None:
        """Close the checkpoint and delete it from disk."""
        self.close()
        self.remove_from(self.file)

    def close(self) -> None:
        """Close the database."""
        self._closed = True
        self._database.close()

    @classmethod
    def remove_from(cls, file: Path) -> None:
        """Delete a checkpoint's files, if there are any.

        Raises:
            OSError: They cannot be deleted, or are folders.
        """
        file.unlink(missing_ok=True)
        # After the database: SQLite does not replay a journal without one.
        file.with_name(f"{file.name}-journal").unlink(missing_ok=True)

    def _open(self) -> None:
        self._database.execute("PRAGMA synchronous = FULL")
        pragmas = [
            self._database.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("application_id", "user_version", "schema_version")
        ]
        if pragmas == [0, 0, 0]:
            self._database.executescript(_SCHEMA)
        elif pragmas[:2] != [_APPLICATION_ID, _FORMAT]:
            raise ValueError(
                f"{self.file} is no checkpoint of this version of resnet50 embed; {_RESTART}"
            )
        row = self._database.execute("SELECT json FROM provenance").fetchone()
        if row is not None:
            try:
                self.provenance = Provenance.from_json(row[0])
            except ValueError as error:
                raise ValueError(f"{self.file}: {error}; {_RESTART}") from error

    def _add(
        self, path: str, fingerprint: FileFingerprint, vector: bytes | None, error: str | None
    ) -> None:
        row = {"path": os.fsencode(path), "vector": vector, "error": error}
        self._pending.append(row | fingerprint._asdict())
        late = time.monotonic() - self._committed_at >= COMMIT_S
        if late or len(self._pending) >= COMMIT_IMAGES:
            self.flush()

    def _count(self, rows: str) -> int:
        with self._reporting_errors():
            (count,) = self._database.execute(f"SELECT count(*) FROM {rows}").fetchone()
        return int(count)

    @contextmanager
    def _reporting_errors(self) -> Iterator[None]:
        """Turn SQLite's errors into those of files, which name the file."""
        try:
            yield
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.OperationalError as error:
            raise OSError(f"checkpoint {self.file}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(f"checkpoint {self.file}: {error}; {_RESTART}") from error
