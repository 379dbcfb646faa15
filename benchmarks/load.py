"""Closed-loop load on one address: wrk where it is installed, else a small client of ours in a process of its own."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

HERE = Path(__file__).parent
HEADERS = "Host: 127.0.0.1\r\nContent-Type: application/json\r\nAuthorization: Bearer bench\r\n"


@dataclass(frozen=True)
class Load:
    """What a load of `seconds` saw. `refused` are replies of 400 and above, `broken` are connections and timeouts."""

    requests: int
    seconds: float
    p50_us: float
    p99_us: float
    refused: int
    broken: int

    @property
    def per_s(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0


def generator() -> str:
    return "wrk" if shutil.which("wrk") else "benchmarks/load.py"


def apply(port: int, bodies: Path, connections: int, seconds: float) -> Load:
    """Keeps `connections` requests in flight for `seconds` (whole ones, at least 1)."""
    whole_s = max(1, round(seconds))
    if generator() == "wrk":
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        options = [
            "-t1",
            f"-c{connections}",
            f"-d{whole_s}s",
            "--timeout",
            "30s",
            "--latency",
            "-s",
            str(HERE / "wrk.lua"),
        ]
        command = ["wrk", *options, url, "--", str(bodies)]
    else:
        command = [sys.executable, str(HERE / "load.py"), str(port), str(bodies), str(connections), str(whole_s)]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=whole_s + 60)
    for line in run.stdout.splitlines():
        if line.startswith("RESULT "):
            return Load(**json.loads(line[7:]))
    raise RuntimeError(f"the load generator failed:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")


def one(port: int, body: str, limit_s: float = 60) -> tuple[float, float, bytes]:
    """One request on a connection of its own: seconds to the first byte of the reply's body, to its end; the reply."""
    with socket.create_connection(("127.0.0.1", port), timeout=limit_s) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.perf_counter()
        connection.sendall(request(body.encode()))
        data, first = b"", 0.0
        while not whole(data):
            more = connection.recv(65536)
            if not more:
                raise RuntimeError(f"the connection ended early: {data[:300]!r}")
            data += more
            if not first and b"\r\n\r\n" in data and not data.endswith(b"\r\n\r\n"):
                first = time.perf_counter() - began
        total = time.perf_counter() - began
    return first or total, total, data


def request(body: bytes) -> bytes:
    return f"POST /v1/chat/completions HTTP/1.1\r\n{HEADERS}Content-Length: {len(body)}\r\n\r\n".encode() + body


def whole(data: bytes) -> bool:
    """Whether an HTTP reply has come to its end."""
    head, separator, rest = data.partition(b"\r\n\r\n")
    if not separator:
        return False
    low = head.lower()
    if b"transfer-encoding: chunked" in low:
        return rest.endswith(b"0\r\n\r\n")
    at = low.find(b"content-length:")
    return at >= 0 and len(rest) >= int(low[at + 15 :].split(b"\r\n", 1)[0])


class Client(asyncio.Protocol):
    """One connection that asks again as soon as it is answered."""

    def __init__(self, requests: list[bytes], turn: int, seen_s: list[float], refused: list[int]) -> None:
        self.requests, self.turn, self.seen_s, self.refused = requests, turn, seen_s, refused
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.ask()

    def ask(self) -> None:
        self.turn = (self.turn + 1) % len(self.requests)
        self.began_s = time.perf_counter()
        self.transport.write(self.requests[self.turn])

    def data_received(self, data: bytes) -> None:
        self.data += data
        if whole(self.data):
            self.seen_s.append(time.perf_counter() - self.began_s)
            if self.data[9:10] not in (b"2", b"3"):
                self.refused.append(1)
            self.data = b""
            self.ask()


async def drive(port: int, requests: list[bytes], connections: int, seconds: float) -> Load:
    seen_s: list[float] = []
    refused: list[int] = []
    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(lambda at=at: Client(requests, at, seen_s, refused), "127.0.0.1", port))[0]  # type: ignore[misc]
        for at in range(connections)
    ]
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    took_s = time.perf_counter() - began
    broken = sum(client.is_closing() for client in clients)
    for client in clients:
        client.abort()
    ranked = sorted(seen_s) or [0.0]
    p50, p99 = (ranked[min(len(ranked) - 1, int(len(ranked) * share))] * 1e6 for share in (0.5, 0.99))
    return Load(len(seen_s), took_s, p50, p99, len(refused), broken)


if __name__ == "__main__":
    _port, _file, _connections, _seconds = sys.argv[1:]
    _requests = [request(line.encode()) for line in Path(_file).read_text().splitlines()]
    print("RESULT", json.dumps(asdict(asyncio.run(drive(int(_port), _requests, int(_connections), float(_seconds))))))
