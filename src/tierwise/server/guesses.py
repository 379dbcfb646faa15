"""Wrong keys by the address they come from: a few are a mistake, many are somebody who guesses or a program gone wild.

Nobody guesses 256 bits, however fast. What is bounded here is what guessers cost, and it is counted that there are
some. A right key is never held up, whatever else comes from its address: a NAT or a proxy hides many callers.
The address is the connection's own; headers such as X-Forwarded-For say what their sender likes.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import ip_address

from tierwise.core.errors import Refused, Unauthorised
from tierwise.server.auth import Identity, Keyring
from tierwise.server.http import Scope

AT_ONCE = 20
EVERY_S = 1.0  # one more
MOST_ORIGINS = 10_000  # remembered; about 2 MB


class Guesses:
    """A token bucket for each origin, the least recently seen forgotten first. `rejected`: since the start."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.rejected = 0
        self._now = now
        self._full_s: OrderedDict[bytes, float] = OrderedDict()  # origin -> when its bucket is full again

    def identify(self, keys: Keyring, headers: dict[str, str], scope: Scope) -> Identity:
        """As the keyring does. Raises Unauthorised, and a 429 for an unknown key after too many from this origin."""
        try:
            return keys.identify(headers)
        except Unauthorised as error:
            # No key at all is no guess, and whoever has one that has expired did not guess it.
            if error.code != "invalid_api_key" or not (wait_s := self.wait_s((scope.get("client") or ("",))[0])):
                raise
            self.rejected += 1
            raise Refused(
                f"too many wrong API keys came from your address; correct the key, or try again in {wait_s} s",
                code="too_many_wrong_keys",
                status=429,
                retry_after_s=wait_s,
                should_retry=False,  # the same key will be as wrong then
            ) from None

    def wait_s(self, address: str) -> int:
        """Count a wrong key from there: 0, or the whole seconds until another one is let through; that one was not."""
        origin, now = origin_of(address), self._now()
        full_s = max(self._full_s.get(origin, now), now)
        over_s = full_s - now - (AT_ONCE - 1) * EVERY_S
        self._full_s[origin] = full_s if over_s > 0 else full_s + EVERY_S
        self._full_s.move_to_end(origin)
        if len(self._full_s) > MOST_ORIGINS:
            self._full_s.popitem(last=False)
        return max(math.ceil(over_s), 0)

    def __len__(self) -> int:
        return len(self._full_s)


def origin_of(address: str) -> bytes:
    """What one subscriber has: an IPv4 address, however it is written, or a /64 of IPv6. A Unix socket has none."""
    try:
        found = ip_address(address)
    except ValueError:
        return address.encode()
    if found.version == 6:
        return found.ipv4_mapped.packed if found.ipv4_mapped else found.packed[:8]
    return found.packed
