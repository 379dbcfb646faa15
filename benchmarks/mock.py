"""The upstream of mock.c in Python, for machines without a C compiler. Slower, so the report says which was used."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Any, cast

EVENTS = 24
SEARCHED_BYTES = 4096
DELAY_MS = re.compile(rb"\[\[delay=(\d+)")
GAP_US = re.compile(rb"\[\[gap=(\d+)")
STREAM = re.compile(rb'"stream": ?true')
LENGTH = re.compile(rb"\r\ncontent-length: ?(\d+)", re.IGNORECASE)

USAGE = {"prompt_tokens": 230, "completion_tokens": 24, "total_tokens": 254}
ABOUT: dict[str, Any] = {"id": "chatcmpl-bench", "created": 1700000000, "model": "bench"}


def reply(body: dict[str, Any]) -> bytes:
    data = json.dumps(body, separators=(",", ":")).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data)


def chunk(event: str) -> bytes:
    data = f"data: {event}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


def part(delta: dict[str, str], finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return chunk(json.dumps({**ABOUT, "object": "chat.completion.chunk", "choices": [choice]}, separators=(",", ":")))


TEXT = "The quick brown fox jumps over the lazy dog, and then it sits down to think about what it has done."
MESSAGE = {"role": "assistant", "content": TEXT, "refusal": None}
COMPLETION = reply(
    {
        **ABOUT,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": MESSAGE, "logprobs": None, "finish_reason": "stop"}],
        "usage": USAGE,
    }
)
MODELS = reply({"object": "list", "data": [{"id": "bench", "object": "model"}]})
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)
PARTS = [
    part({"role": "assistant", "content": ""}, None),
    *[part({"content": " fox"}, None)] * (EVENTS - 2),
    part({}, "stop"),
]
USAGE_PART = chunk(json.dumps({**ABOUT, "object": "chat.completion.chunk", "choices": [], "usage": USAGE}))
DONE = chunk("[DONE]") + b"0\r\n\r\n"


class Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.data = b""
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one by duty, not by descent

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.answer()

    def answer(self) -> None:
        while not self.busy:
            end = self.data.find(b"\r\n\r\n")
            if end < 0:
                return
            length = LENGTH.search(self.data, 0, end)
            total = end + 4 + (int(length[1]) if length else 0)
            if len(self.data) < total:
                return
            head, body = self.data[:3], self.data[end + 4 : total]
            self.data = self.data[total:]
            if head == b"GET":
                self.transport.write(MODELS)
            else:
                self.complete(body if len(body) <= SEARCHED_BYTES else b"")

    def complete(self, body: bytes) -> None:
        delay, gap = DELAY_MS.search(body), GAP_US.search(body)
        pieces = [COMPLETION]
        if STREAM.search(body):
            last = (USAGE_PART if b"include_usage" in body else b"") + DONE
            pieces = [HEAD + PARTS[0], *PARTS[1:-1], PARTS[-1] + last]
        if delay or gap:
            self.busy = True
            waits = (int(delay[1]) / 1e3 if delay else 0.0, int(gap[1]) / 1e6 if gap else 0.0)
            asyncio.get_running_loop().call_later(waits[0], self.paced, pieces, waits[1])
        else:
            for piece in pieces:
                self.transport.write(piece)

    def paced(self, pieces: list[bytes], gap_s: float) -> None:
        if not gap_s:
            pieces = [b"".join(pieces)]  # no pace was asked for, and a timer for each piece would be one
        self.transport.write(pieces[0])
        if pieces[1:]:
            asyncio.get_running_loop().call_later(gap_s, self.paced, pieces[1:], gap_s)
        else:
            self.busy = False
            self.answer()


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.run(main(int(sys.argv[1])))
    except ImportError:
        asyncio.run(main(int(sys.argv[1])))
