"""A disk for SQLite that can lose what was not synced, and fail. Power is cut on paper: an image is made of what a disk
could hold if it went dark at that moment, each unsynced write kept, lost, or torn at a sector, whatever its order.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw

SECTOR = 512
Fault = Callable[[str, str], Exception | None]  # ("write" | "sync" | "truncate", file's name) -> what to raise


class Write:
    """One unsynced write, and what was there before it. `data` None: a truncation to `offset`."""

    def __init__(self, offset: int, data: bytes | None, old: bytes, old_size: int) -> None:
        self.offset, self.data, self.old, self.old_size = offset, data, old, old_size


class Disk(apsw.VFS):
    """Registered as long as it lives; give its `name` to whoever opens a file. `before` is called at every write and
    sync, in the writer's thread."""

    def __init__(self, name: str, seed: int = 0) -> None:
        self.name = name
        self.random = random.Random(seed)
        self.unsynced: dict[str, list[Write]] = {}
        self.operations = 0
        self.syncs = 0
        self.before: Callable[[], None] = lambda: None
        self.fault: Fault = lambda operation, file: None
        super().__init__(name, "")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        return DiskFile(self, name, flags)

    def note(self, operation: str, path: str) -> None:
        self.operations += 1
        self.before()
        error = self.fault(operation, Path(path).name)
        if error is not None:
            raise error

    def image(self, folder: Path, to: Path) -> None:
        """What the folder could hold after a power cut now. A memory-mapped -shm is gone."""
        to.mkdir()
        for path in folder.iterdir():
            if path.name.endswith("-shm"):
                continue
            copy = to / path.name
            shutil.copyfile(path, copy)
            writes = self.unsynced.get(str(path), [])
            if writes:
                self._cut(copy, writes)

    def _cut(self, path: Path, writes: list[Write]) -> None:
        data = bytearray(path.read_bytes())
        for write in reversed(writes):  # back to what was synced
            data[write.offset : write.offset + len(write.old)] = write.old
            del data[write.old_size :]
        for write in writes:
            if write.data is None:
                if self.random.random() < 0.5:
                    del data[write.offset :]
                continue
            fate = self.random.random()
            if fate < 0.3:
                continue
            for start, sector in sectors(write.offset, write.data):
                if fate < 0.7 or self.random.random() < 0.5:
                    data.extend(bytes(max(start - len(data), 0)))
                    data[start : start + len(sector)] = sector
        path.write_bytes(data)


def sectors(offset: int, data: bytes) -> list[tuple[int, bytes]]:
    found = []
    at = 0
    while at < len(data):
        length = SECTOR - (offset + at) % SECTOR
        found.append((offset + at, data[at : at + length]))
        at += length
    return found


class DiskFile(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        self.disk = disk
        self.path = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        super().__init__("", name, flags)

    def _log(self, offset: int, data: bytes | None, old_bytes: int) -> None:
        size = self.xFileSize()
        old = self.xRead(old_bytes, offset) if old_bytes > 0 and offset < size else b""
        old = bytes(old)[: max(size - offset, 0)]
        self.disk.unsynced.setdefault(self.path, []).append(Write(offset, data, old, size))

    def xWrite(self, data: bytes, offset: int) -> None:
        self.disk.note("write", self.path)
        data = bytes(data)
        self._log(offset, data, min(len(data), max(self.xFileSize() - offset, 0)))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:
        self.disk.note("truncate", self.path)
        self._log(newsize, None, max(self.xFileSize() - newsize, 0))
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:
        self.disk.note("sync", self.path)
        self.disk.syncs += 1
        super().xSync(flags)
        self.disk.unsynced.pop(self.path, None)
