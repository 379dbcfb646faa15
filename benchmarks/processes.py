"""Starts, watches and ends the processes of a benchmark, and reads from /proc what they cost. Linux only."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Process:
    """One child with its log. Everything is counted over the child and all its descendants."""

    def __init__(
        self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ):
        # PYTHONDONTWRITEBYTECODE would start Python peers ten times slower, and flatter us.
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH")}
        self.log = log
        self.started_s = time.perf_counter()
        with log.open("ab") as out:
            self.child = subprocess.Popen(
                list(command), stdout=out, stderr=out, stdin=subprocess.DEVNULL, env={**clean, **(env or {})}, cwd=cwd
            )

    def tree(self) -> list[int]:
        """The child and its descendants that are alive, by walking every parent id once."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, IndexError):
                    parent = int(_stat(int(entry.name))[1])
                    children.setdefault(parent, []).append(int(entry.name))
        found, queue = [], [self.child.pid]
        while queue:
            pid = queue.pop()
            found.append(pid)
            queue += children.get(pid, [])
        return found

    def cpu_s(self) -> float:
        """User and system time of the tree, its ended and reaped children included."""
        total = 0
        for pid in self.tree():
            with contextlib.suppress(OSError, IndexError):
                total += sum(int(ticks) for ticks in _stat(pid)[11:15])
        return total / TICKS_PER_S

    def rss_mb(self) -> float:
        """Resident memory of the tree in MB (10^6). Pages that processes share are counted once per process."""
        pages = 0
        for pid in self.tree():
            with contextlib.suppress(OSError, IndexError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * PAGE_BYTES / 1e6

    def wait_for(self, port: int, path: str, limit_s: float) -> None:
        """Until GET path is 200, asking often: cold start is measured with it."""
        deadline = time.perf_counter() + limit_s
        while time.perf_counter() < deadline:
            if self.child.poll() is not None:
                raise RuntimeError(f"it ended with {self.child.returncode} before it was ready:\n{self.tail()}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
                connection.request("GET", path)
                status = connection.getresponse().status
                connection.close()
                if status == 200:
                    return
            time.sleep(0.01)
        raise RuntimeError(f"it was not ready after {limit_s:.0f} s:\n{self.tail()}")

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """Ends the child, then whatever of its tree is left, each by its own id."""
        tree = self.tree()
        self.child.terminate()
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        for pid in tree[1:]:
            with contextlib.suppress(OSError):
                if int(_stat(pid)[1]) in (1, self.child.pid):
                    os.kill(pid, signal.SIGKILL)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may itself contain spaces and brackets. [1] is the parent."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
