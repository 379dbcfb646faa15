"""The libraries and nothing of ours: uvicorn on uvloop and httptools in front, an aiohttp session behind.

What this costs on a machine is the least that anything built on them can cost there. `python -m benchmarks.stack PORT
UPSTREAM`.
"""

from __future__ import annotations

import sys
from typing import Any

import aiohttp
import uvicorn

_sessions: list[aiohttp.ClientSession] = []


async def proxy(scope: Any, receive: Any, send: Any) -> None:
    if not _sessions:
        _sessions.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
    message = await receive()
    body = message["body"]
    while message.get("more_body"):
        message = await receive()
        body += message["body"]
    url = f"http://127.0.0.1:{sys.argv[2]}{scope['path']}"
    headers = {"content-type": "application/json"}
    async with _sessions[0].request(scope["method"], url, data=body, headers=headers) as reply:
        kind = reply.headers.get("content-type", "").encode()
        if reply.headers.get("content-length"):
            whole = await reply.read()
            length = (b"content-length", b"%d" % len(whole))
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind), length]})
            await send({"type": "http.response.body", "body": whole})
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        async for chunk in reply.content.iter_any():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    uvicorn.run(
        proxy,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="critical",
        server_header=False,
        date_header=False,
        proxy_headers=False,
    )
