"""Opens the episode of a request: the one place where the time, the dice, the resting models and the price of money are
read. Behind this door nothing is looked up twice.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable

import msgspec

from tierwise.core.catalogue import Kind
from tierwise.core.episode import Episode
from tierwise.core.features import extract
from tierwise.core.names import check_selectors, meaning
from tierwise.core.ports import Ledger
from tierwise.core.request import Features, Hints, Payer, Request
from tierwise.core.snapshot import Snapshot
from tierwise.routing.attempts import DERIVED

WORKLOAD_CHARACTERS = 64
_log = logging.getLogger("tierwise")


def open_episode(
    request: Request,
    payer: Payer,
    grants: tuple[str, ...],
    snapshot: Snapshot,
    ledger: Ledger,
    resting: tuple[tuple[str, int], ...],
    now: Callable[[], float] = time.time,
    draw: Callable[[], float] = random.random,
) -> Episode:
    """The story's first page. Raises Unknown or BadRequest for a name that means nothing."""
    hints = request.hints
    kind: Kind = "chat"
    task = hints.task
    if request.wire == "openai_embeddings":
        kind = task = "embedding"
    means = meaning(snapshot, request.model, hints.policy, kind)
    if hints.allow or hints.deny:
        check_selectors(snapshot, "allow", hints.allow)
        check_selectors(snapshot, "deny", hints.deny)
    at = now()
    at_s = int(at)
    features = _features(request, snapshot, kind)
    if hints.session is not None and hints.session.startswith(DERIVED):
        # Many conversations begin with the same words. Those of one payer and one hour are taken for one.
        hints = msgspec.structs.replace(hints, session=f"{hints.session}-{at_s // 3_600:x}")
    if task is not None:
        features = msgspec.structs.replace(features, task=task)
    return Episode(
        id=new_id(at),
        snapshot=snapshot.hash,
        at_s=at_s,
        draw=draw(),
        requested=request.model,
        policy=means.policy,
        features=features,
        workload=workload_of(features, hints, payer),
        hints=hints,
        payer=payer,
        latency=hints.latency or "interactive",
        criticality=hints.criticality or "user",
        service=request.service,
        stream=request.stream,
        pinned=means.pinned,
        money=ledger.money(payer, hints, at_s),
        resting=resting,
        grants=grants,
        kind=kind,
    )


def workload_of(features: Features, hints: Hints, payer: Payer) -> str:
    """Which use of the owner's this is: the label or tag `workload`, else the template, else the system prompt."""
    if payer.tags or hints.labels:
        named = dict((*payer.tags, *hints.labels)).get("workload")
        if named:
            return named[:WORKLOAD_CHARACTERS]
    return features.template or (f"system-{features.system_hash}" if features.system_hash else "")


def _features(request: Request, snapshot: Snapshot, kind: Kind) -> Features:
    try:
        return extract(request.prompt, snapshot.keywords, with_grams=snapshot.reads_grams and kind == "chat")
    except Exception:
        # A router is an optimisation: when it cannot read the prompt, it knows less, and the request goes on.
        _log.exception("features could not be read; routing without them")
        prompt = request.prompt
        return Features(
            input_tokens=prompt.size_bytes // 4 + 1,
            input_bound_tokens=prompt.size_bytes + 1,
            max_tokens=prompt.max_tokens,
            references=prompt.references,
            replied=prompt.replied,
            tail_hash=prompt.tail_hash,
        )


_CHANCES = tuple(slice(start, start + 20) for start in range(0, 2_000, 20))
_chance: list[str] = []  # asked of the system by the hundred: one question costs as much as the rest of an id


def new_id(at_s: float) -> str:
    """32 hexadecimal digits that sort by time: 48 bits of milliseconds and 80 of chance."""
    try:
        chance = _chance.pop()  # atomic, so that two threads never get the same
    except IndexError:
        chance, *more = map(os.urandom(1_000).hex().__getitem__, _CHANCES)
        _chance.extend(more)
    return f"{int(at_s * 1_000) & (1 << 48) - 1:012x}{chance}"
