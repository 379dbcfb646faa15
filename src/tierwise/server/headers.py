"""What the headers of a reply say of its decision and its money."""

from __future__ import annotations

import functools

from tierwise.core.money import usd_text
from tierwise.routing.trace import Trace
from tierwise.server.http import Headers


def trace_headers(trace: Trace, *, begun: bool = False) -> Headers:
    """What the reply's headers say of the decision. `begun`: a stream, whose cost is not known yet."""
    found: Headers = [
        *id_headers(trace.request.wire, trace.episode.id),
        *_choice(trace.routed, trace.episode.policy, trace.code),
        (b"x-tierwise-attempts", b"%d" % trace.attempts),
    ]
    if not begun:
        found += [
            (b"x-tierwise-cost-usd", _usd(trace.cost_nano)),
            (b"x-tierwise-baseline-usd", _usd(trace.baseline_nano)),
            (b"x-tierwise-saved-usd", _usd(trace.saved_nano)),
        ]
    left = trace.money.left_nano if begun else trace.left_nano
    if left is not None:
        found.append((b"x-tierwise-budget-remaining-usd", _usd(left)))
    if trace.simulated():
        found.append((b"x-tierwise-simulated", b"true"))
    if trace.lost:
        found.append((b"x-tierwise-lost", _header("; ".join(trace.lost)[:1_000])))
    return found


def id_headers(dialect: str, decision: str) -> Headers:
    """The decision, also under the name by which the vendors' SDKs tell a request: in `_request_id` and in errors."""
    id = decision.encode()
    return [(b"x-tierwise-decision", id), (b"request-id" if dialect == "anthropic" else b"x-request-id", id)]


def _usd(nano: int | None) -> bytes:
    return b"unknown" if nano is None else usd_text(nano).encode()


@functools.lru_cache(maxsize=1024)  # of models, policies and reasons there are few
def _choice(model: str, policy: str, reason: str) -> tuple[tuple[bytes, bytes], ...]:
    return (
        (b"x-tierwise-model", _header(model)),
        (b"x-tierwise-policy", _header(policy)),
        (b"x-tierwise-reason", _header(reason)),
    )


def _header(value: str) -> bytes:
    """Visible ASCII only: what a header says must not be able to end it."""
    if value.isascii() and value.isprintable():
        return value.encode()
    return "".join(letter if " " <= letter <= "~" else "?" for letter in value).encode()
