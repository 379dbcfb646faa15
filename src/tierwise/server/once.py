"""A request with an Idempotency-Key: answered once, and after that with the reply that it had."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tierwise.core.request import Request
from tierwise.routing.door import new_id
from tierwise.routing.idempotency import Kept
from tierwise.server.http import reply

if TYPE_CHECKING:
    from tierwise.server.app import App, Call


async def answer_once(app: App, call: Call, request: Request, key: str) -> None:
    """Raises Conflict and what `Replays.begin` raises else; whatever happens after that, the claim is ended."""
    asked = request.wire.encode() + b"\0" + call.body
    payer, decision = call.identity.payer, new_id(time.time())
    once = await app.replays.begin(app.router.ledger, payer, key, asked, decision)
    if isinstance(once, Kept):
        await reply(call.send, 200, once.body, [*once.headers, (b"x-tierwise-replayed", b"true")])
        return
    try:
        await app.answer(call, request, once)
    finally:
        once.end()
