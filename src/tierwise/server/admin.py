"""The admin API: keys, budgets and credits over HTTP, for keys with the role admin. What each may do is in `desk`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl

from tierwise.core.errors import BadRequest, ConfigError, Forbidden, Unavailable
from tierwise.server.desk import Desk
from tierwise.server.forms import BudgetBody, CreditBody, KeyBody, converted
from tierwise.server.http import Headers, reply_json
from tierwise.wire import strict

if TYPE_CHECKING:
    from tierwise.core.keys import Book
    from tierwise.server.app import App, Call

T = TypeVar("T")
ROTATE = "/rotate"
NO_STORE: Headers = [(b"cache-control", b"no-store")]  # a secret is told once, and no cache on its way keeps it


async def _keys(app: App, call: Call) -> None:
    await _list(call, await _at_desk(app, call, Desk.keys))


async def _create_key(app: App, call: Call) -> None:
    body = converted(strict.load(call.body), KeyBody, "key")
    secret, shown = await _at_desk(app, call, lambda desk: desk.create(body))
    await reply_json(call.send, 200, {**shown, "secret": secret}, NO_STORE)


async def _key(app: App, call: Call) -> None:
    await reply_json(call.send, 200, await _at_desk(app, call, lambda desk: desk.key(call.tail)))


async def _change_key(app: App, call: Call) -> None:
    body = strict.load(call.body) if call.body.strip() else {}
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object", code="invalid_key")
    if not call.tail.endswith(ROTATE):
        await reply_json(call.send, 200, await _at_desk(app, call, lambda desk: desk.change(call.tail, body)))
        return
    overlap_s = body.pop("overlap_s", 0)
    if body or not isinstance(overlap_s, int):
        raise BadRequest("a rotation takes `overlap_s`, whole seconds, and nothing else", code="invalid_key")
    name = call.tail.removesuffix(ROTATE)
    secret, shown = await _at_desk(app, call, lambda desk: desk.rotate(name, overlap_s))
    await reply_json(call.send, 200, {**shown, "secret": secret}, NO_STORE)


async def _revoke_key(app: App, call: Call) -> None:
    query = dict(parse_qsl(call.query.decode("latin-1")))
    descendants = query.get("descendants", "") in ("true", "1")
    names = await _at_desk(app, call, lambda desk: desk.revoke(call.tail, descendants=descendants))
    await reply_json(call.send, 200, {"revoked": names})


async def _budgets(app: App, call: Call) -> None:
    await _list(call, await _at_desk(app, call, Desk.budgets))


async def _set_budget(app: App, call: Call) -> None:
    body = converted(strict.load(call.body), BudgetBody, "budget")
    await reply_json(call.send, 200, await _at_desk(app, call, lambda desk: desk.set_budget(body)))


async def _remove_budget(app: App, call: Call) -> None:
    await _at_desk(app, call, lambda desk: desk.remove_budget(call.tail))
    await reply_json(call.send, 200, {"removed": call.tail})


async def _credits(app: App, call: Call) -> None:
    await _list(call, await _at_desk(app, call, Desk.credits))


async def _add_credit(app: App, call: Call) -> None:
    body = converted(strict.load(call.body), CreditBody, "credit")
    new, shown = await _at_desk(app, call, lambda desk: desk.add_credit(body))
    await reply_json(call.send, 200, {**shown, "new": new})


async def _at_desk(app: App, call: Call, work: Callable[[Desk], T]) -> T:
    """Work on the registry as it is now, off the event loop, one admin at a time; then serve what has become of it."""
    grant = call.identity.grant
    if grant is None:
        raise Forbidden("without keys nobody is an admin over HTTP", code="admin_only")
    name = grant.name

    def at_desk(book: Book) -> T:
        runtime = app.runtime
        desk = Desk(
            runtime.registry,
            book,
            int(time.time()),
            files={key.name: key.grant for key in runtime.setup.keys},
            budgets=runtime.setup.budgets,
            snapshot=app.router.snapshot,
            grantor=name,
        )
        return work(desk)

    try:
        return await app.runtime.manage(at_desk)
    except ConfigError as error:
        raise Unavailable(error.problems[0].what, code="registry_unavailable", retry_after_s=1) from None


async def _list(call: Call, rows: list[dict[str, Any]]) -> None:
    await reply_json(call.send, 200, {"object": "list", "data": rows})


DOORS: dict[tuple[str, str], Callable[[App, Call], Awaitable[None]]] = {
    ("GET", "/admin/keys"): _keys,
    ("POST", "/admin/keys"): _create_key,
    ("GET", "/admin/keys/"): _key,
    ("POST", "/admin/keys/"): _change_key,
    ("DELETE", "/admin/keys/"): _revoke_key,
    ("GET", "/admin/budgets"): _budgets,
    ("POST", "/admin/budgets"): _set_budget,
    ("DELETE", "/admin/budgets/"): _remove_budget,
    ("GET", "/admin/credits"): _credits,
    ("POST", "/admin/credits"): _add_credit,
}
