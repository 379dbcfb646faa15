"""Who pays: known from the key alone. A caller never chooses whose budget it spends."""

from __future__ import annotations

import hashlib
import hmac
import os

import msgspec

from tierwise.core.errors import Unauthorised
from tierwise.core.request import Payer

MOST_KEY_LETTERS = 512


class Identity(msgspec.Struct, frozen=True):
    """`grants`: models, tiers or providers that the key may use; () means all."""

    payer: Payer
    grants: tuple[str, ...] = ()


ANYONE = Identity(Payer())


class Keyring:
    """Keys by their keyed hash, so that what is compared is never the key and takes the same time for any guess."""

    def __init__(self, keys: tuple[tuple[str, Identity], ...]) -> None:
        self._pepper = os.urandom(32)
        self._known = {self._digest(secret): identity for secret, identity in keys}

    def identify(self, headers: dict[str, str]) -> Identity:
        """Raises Unauthorised. With no keys at all, everybody is the same anonymous payer."""
        if not self._known:
            return ANYONE
        given = headers.get("authorization", "")
        key = given[7:] if given[:7].casefold() == "bearer " else headers.get("x-api-key", "")
        if not key:
            raise Unauthorised(
                "no API key was given; send it as `Authorization: Bearer KEY` or `x-api-key: KEY`",
                code="missing_api_key",
            )
        found = self._known.get(self._digest(key)) if len(key) <= MOST_KEY_LETTERS else None
        if found is None:
            raise Unauthorised("this API key is not known here", code="invalid_api_key")
        return found

    def _digest(self, key: str) -> bytes:
        return hmac.digest(self._pepper, key.strip().encode("utf-8", "surrogateescape"), hashlib.sha256)
