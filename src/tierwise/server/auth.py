"""Who pays, and what they may ask for: known from the key alone. A caller never chooses whose budget it spends.

Every path behind a key stands in one of two tables here: what it takes to use it, or that it takes nothing. A path in
neither is closed to keys that are held to routes, and a test fails.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

import msgspec

from tierwise.core.errors import Forbidden, Unauthorised
from tierwise.core.keys import Grant, Route
from tierwise.core.names import AUTO, CLAUDE_ALIAS, meaning
from tierwise.core.request import Payer, Request
from tierwise.core.snapshot import Snapshot

MOST_KEY_LETTERS = 512
ROUTE_OF: dict[str, Route] = {
    "/chat/completions": "chat",
    "/messages": "messages",
    "/messages/count_tokens": "messages",
    "/embeddings": "embeddings",
}
ADMIN_START = "/admin/"
# Nothing is bought here, and nobody sees what is another's. `/route` decides and calls nothing.
FREE = ("/route", "/feedback", "/models", "/models/", "/decisions/", "/balance", "/metrics")


class Identity(msgspec.Struct, frozen=True):
    """Whoever holds a key. Of `grants` (models, tiers or providers), `policies` and `routes`, () means all."""

    payer: Payer
    grants: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    grant: Grant | None = None  # the whole of it; None for the one who needs no key


ANYONE = Identity(Payer())


def identity_of(grant: Grant) -> Identity:
    return Identity(grant.payer, grant.allow, grant.policies, grant.routes, grant)


class Known(msgspec.Struct, frozen=True):
    """One secret that is good until `until_s` (None: for ever), by its keyed hash."""

    digest: bytes
    identity: Identity
    until_s: float | None = None


_NOBODY = Known(bytes(32), ANYONE)  # stands in for the key that is not there


class Keyring:
    """Keys by the whole of their keyed hash: what is compared is never the key, and every guess is the same work.

    `open`: there is no key at all, and never was one, so everybody is the same anonymous payer."""

    def __init__(
        self,
        known: Iterable[Known],
        *,
        pepper: bytes | None = None,
        open: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._pepper = os.urandom(32) if pepper is None else pepper
        self._known = {each.digest: each for each in known}
        self._now = now
        self.open = open

    def identify(self, headers: dict[str, str]) -> Identity:
        """Raises Unauthorised."""
        if self.open:
            return ANYONE
        given = headers.get("authorization", "")
        key = given[7:] if given[:7].casefold() == "bearer " else headers.get("x-api-key", "")
        if not key:
            raise Unauthorised(
                "no API key was given; send it as `Authorization: Bearer KEY` or `x-api-key: KEY`",
                code="missing_api_key",
            )
        # Unknown keys and those that are too long are the same work as a right one: one hash, one look, one comparison.
        digest = digest_of(self._pepper, key[:MOST_KEY_LETTERS])
        found = self._known.get(digest, _NOBODY)
        same = hmac.compare_digest(found.digest, digest)
        if not same or found is _NOBODY or len(key) > MOST_KEY_LETTERS:
            raise Unauthorised("this API key is not known here, or was revoked", code="invalid_api_key")
        if found.until_s is not None and self._now() >= found.until_s:
            raise Unauthorised("this API key has expired; ask for another", code="expired_api_key")
        return found.identity


def check_neighbour(headers: dict[str, str]) -> None:
    """Of a gateway without keys, which trusts whatever runs on its machine. A browser runs there too, and sends plain
    requests for any page without asking, also to a name of the page's own that leads here. Raises Forbidden for both:
    a program of this machine has no reason to send them."""
    name = _foreign(headers.get("host"), headers.get("origin"))
    if name:
        raise Forbidden(
            f"this gateway has no keys, so it answers programs of its own machine only, and {name.title()} is "
            f"{headers[name][:100]!r}: ask http://127.0.0.1 or http://localhost, or make a key (`tierwise key create`)",
            code=f"foreign_{name}",
        )


@functools.lru_cache(maxsize=256)  # asked of every request, and of a gateway's own callers nearly always the same
def _foreign(host: str | None, origin: str | None) -> str:
    """The one of the two headers that names another machine; "" for neither."""
    for name, said in (("host", host), ("origin", origin)):
        if said is not None and not _is_here(said):
            return name
    return ""


def _is_here(said: str) -> bool:
    """Of a Host, or of an Origin: a URL's beginning, or `null`."""
    try:
        name = urlsplit(said if "//" in said else f"//{said}").hostname or ""
        return name == "localhost" or name.endswith(".localhost") or ip_address(name).is_loopback
    except ValueError:
        return False


def digest_of(pepper: bytes, key: str) -> bytes:
    return hmac.digest(pepper, key.strip().encode("utf-8", "surrogateescape"), hashlib.sha256)


# ------------------------------------------------------------------------------------------------ what it may ask for


def check_route(identity: Identity, start: str) -> None:
    """Raises Forbidden for a door that this key may not use. `start` is the door's own path, without what follows."""
    if start.startswith(ADMIN_START):
        _check_admin(identity)
    elif identity.routes and start not in FREE and ROUTE_OF.get(start) not in identity.routes:
        raise Forbidden(
            f"this key may not use /v1{start}; it is for {', '.join(identity.routes)}", code="route_forbidden"
        )


def _check_admin(identity: Identity) -> None:
    grant = identity.grant
    if grant is None:
        raise Forbidden(
            "without keys nobody is an admin over HTTP; make the first on the machine itself: "
            "tierwise key create --name NAME --role admin",
            code="admin_only",
        )
    if not grant.admin or (grant.routes and "admin" not in grant.routes):
        raise Forbidden("this takes a key with the role admin", code="admin_only")


def held_to_policies(identity: Identity, request: Request, snapshot: Snapshot) -> Request:
    """The request as this key may make it: where it leaves the policy open, it gets the first that its key has.

    Raises Forbidden for another policy, and for a name that passes all policies by (a model, a tier); Unknown for a
    name that means nothing."""
    policies = identity.policies
    if not policies:
        return request
    if request.model in ("", AUTO, CLAUDE_ALIAS) and request.hints.policy is None and "default" not in policies:
        request = msgspec.structs.replace(request, hints=msgspec.structs.replace(request.hints, policy=policies[0]))
    embedding = request.wire == "openai_embeddings"
    means = meaning(snapshot, request.model, request.hints.policy, "embedding" if embedding else "chat")
    chosen = not embedding or means.policy != "default"  # vectors come from one model, whatever the policy
    if (chosen and means.policy not in policies) or (means.pinned and not embedding):
        raise Forbidden(
            f"this key is held to the policies {', '.join(policies)}; ask for {AUTO} or {AUTO}/{policies[0]}",
            code="policy_forbids",
        )
    return request
