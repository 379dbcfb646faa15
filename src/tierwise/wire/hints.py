"""What a caller may say to Tierwise itself: `x-tierwise-*` headers, a `tierwise` object, or `metadata.tierwise`.

In our own namespace an unknown key is an error, because a hint that silently does nothing is money spent by a typo.
Who pays is never read here: that comes from the key, or from a trusted proxy, before a codec sees the headers.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, get_args

from tierwise.core.errors import BadRequest
from tierwise.core.money import cap_to_nano
from tierwise.core.request import Criticality, Hints, LatencyClass, Task, Turn
from tierwise.wire.strict import Json, bad, did_you_mean, kind, one_of

PREFIX = "x-tierwise-"
MAX_NAME = 256
MAX_LIST = 100
MAX_LATENCY_MS = 86_400_000
MAX_STEP = 1_000_000
MAX_BEGINNING = 4_096  # characters of a turn that tell conversations apart, with its length
PAYER_KEYS = frozenset(("key", "user", "team", "organisation", "organization", "payer", "tags"))
# In this order, as sent by clients that know nothing of us. Headers are lower case here.
SESSION_FIELDS = ("session_id", "prompt_cache_key")
SESSION_HEADERS = ("x-session-id", "x-claude-code-session-id", "x-litellm-session-id", "helicone-session-id")
_SESSION_FIELDS, _SESSION_HEADERS = frozenset(SESSION_FIELDS), frozenset(SESSION_HEADERS)

_LATENCY: tuple[str, ...] = get_args(LatencyClass)
_CRITICALITY: tuple[str, ...] = get_args(Criticality)
_TASK: tuple[str, ...] = get_args(Task)
_ON = {"true": True, "1": True, "on": True, "yes": True, "false": False, "0": False, "off": False, "no": False}
_NUMBER = re.compile(r"[0-9]{1,18}(\.[0-9]{1,18})?\Z")
_WHOLE = re.compile(r"[0-9]{1,15}\Z")


def read_hints(tree: Json, headers: dict[str, str], turns: list[Turn]) -> Hints:
    """The hints of a request, headers before body, with a session id in every case.

    Raises BadRequest naming the header or field, with the nearest known name for an unknown one.
    """
    found: dict[str, Any] = {}
    metadata = tree.get("metadata")
    if type(metadata) is dict and "tierwise" in metadata:
        _read_object(metadata["tierwise"], "metadata.tierwise", found)
    if "tierwise" in tree:
        _read_object(tree["tierwise"], "tierwise", found)
    if PREFIX in " ".join(headers):  # one look at all of them: most requests have none
        for name in headers:
            if name.startswith(PREFIX):
                key = name[len(PREFIX) :].replace("-", "_")
                field, value = _hint(key, headers[name].strip(), name, header=True)
                found[field] = value
    if "session" not in found:
        found["session"] = _session(tree, headers, metadata, turns)
    return Hints(**found)


def _read_object(value: Any, where: str, found: dict[str, Any]) -> None:
    if type(value) is str:  # metadata that may hold strings only
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise bad(where, "must be an object, or the JSON text of one") from None
    if type(value) is not dict:
        raise bad(where, f"must be an object, not {kind(value)}")
    for key, hint in value.items():
        if hint is not None:
            field, read = _hint(key, hint, f"{where}.{key}"[:200], header=False)
            found[field] = read


def _hint(key: str, value: Any, where: str, *, header: bool) -> tuple[str, Any]:
    """One hint as a field of `Hints` and its value."""
    match key:
        case "policy" | "session" | "workflow":
            return key, _name(value, where)
        case "min_quality":
            return key, _between(value, where, 0.0, 1.0, header)
        case "max_cost_usd":
            return "max_cost_nano", _usd(value, where)
        case "max_latency_ms":
            return key, _whole(value, where, 1, MAX_LATENCY_MS, header)
        case "step":
            return key, _whole(value, where, 0, MAX_STEP, header)
        case "latency":
            return key, one_of(value, where, _LATENCY)
        case "criticality":
            return key, one_of(value, where, _CRITICALITY)
        case "task":
            return key, one_of(value, where, _TASK)
        case "locality":
            return key, one_of(value, where, ("local",))
        case "allow" | "deny":
            return key, _names(value, where)
        case "explore" | "dry_run":
            return key, _switch(value, where)
        case "labels":
            return key, _labels(value, where)
    if key in PAYER_KEYS:
        raise bad(where, "is not accepted: who pays comes from the API key, never from the request")
    known = ("policy", "min_quality", "max_cost_usd", "max_latency_ms", "latency", "criticality", "task", "session",
             "workflow", "step", "allow", "deny", "locality", "explore", "dry_run", "labels")  # fmt: skip
    raise BadRequest(
        f"{where}: Tierwise knows no such hint{did_you_mean(key, known)}. Known: {', '.join(known)}.",
        param=where,
        code="unknown_hint",
    )


def _name(value: Any, where: str) -> str:
    if type(value) is not str:
        raise bad(where, f"must be a string, not {kind(value)}")
    if not value or len(value) > MAX_NAME or not value.isprintable():
        raise bad(where, f"must be 1 to {MAX_NAME} printable characters")
    return value


def _between(value: Any, where: str, low: float, high: float, header: bool) -> float:
    if header and type(value) is str and _NUMBER.match(value):
        value = float(value)
    if (type(value) is not float and type(value) is not int) or not low <= value <= high:
        raise bad(where, f"must be a number from {low:g} to {high:g}")
    return float(value)


def _whole(value: Any, where: str, low: int, high: int, header: bool) -> int:
    if header and type(value) is str and _WHOLE.match(value):
        value = int(value)
    if type(value) is not int or not low <= value <= high:
        raise bad(where, f"must be a whole number from {low} to {high}")
    return value


def _usd(value: Any, where: str) -> int:
    if type(value) is str and not _NUMBER.match(value):
        raise bad(where, "must be a plain decimal number of US dollars, such as 0.05")
    if type(value) not in (str, int, float):
        raise bad(where, f"must be a number of US dollars, not {kind(value)}")
    try:
        return cap_to_nano(value, what=where)
    except ValueError as error:
        raise BadRequest(f"{error}.", param=where) from None


def _names(value: Any, where: str) -> tuple[str, ...]:
    if type(value) is str:
        value = [part.strip() for part in value.split(",")]
    if type(value) is not list or not value or len(value) > MAX_LIST:
        raise bad(where, f"must be a list of 1 to {MAX_LIST} models, tiers or providers")
    return tuple(_name(part, where) for part in value)


def _switch(value: Any, where: str) -> bool:
    if type(value) is bool:
        return value
    if type(value) is str and value.lower() in _ON:
        return _ON[value.lower()]
    raise bad(where, "must be on or off")


def _labels(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    if type(value) is str:
        parts = [part.partition("=") for part in value.split(",")]
        if not all(sep for _, sep, _ in parts):
            raise bad(where, "must be name=value pairs, separated by commas")
        value = {name.strip(): text.strip() for name, _, text in parts}
    if type(value) is not dict or len(value) > MAX_LIST:
        raise bad(where, f"must be an object of at most {MAX_LIST} names and values")
    return tuple((_name(name, where), _name(text, f"{where}.{name}"[:200])) for name, text in value.items())


def _session(tree: Json, headers: dict[str, str], metadata: Any, turns: list[Turn]) -> str:
    if not (_SESSION_FIELDS.isdisjoint(tree) and _SESSION_HEADERS.isdisjoint(headers)):
        for field in SESSION_FIELDS:
            if type(value := tree.get(field)) is str and value:
                return _short(value)
        for name in SESSION_HEADERS:
            if value := headers.get(name):
                return _short(value)
    if type(metadata) is dict and type(value := metadata.get("user_id")) is str and value:
        return _person(value)
    if "user" in tree and type(value := tree["user"]) is str and value:
        return _person(value)
    # Every later request of the conversation begins in the same way, so it finds the same session.
    beginning = ""
    for turn in turns:
        role, text = turn.role, turn.text
        if role == "user" or role == "system":
            beginning += f"{text[:MAX_BEGINNING]}\0{len(text)}\0"
            if role == "user":
                break
    return "auto-" + hashlib.blake2b(beginning.encode(), digest_size=12).hexdigest()


def _person(value: str) -> str:
    """These fields name a person, often by an address: what is kept of them is a hash."""
    return "user-" + hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _short(value: str) -> str:
    """A session id is an index key somewhere: bounded and printable, still one to one."""
    if len(value) <= MAX_NAME and value.isprintable():
        return value
    return "hash-" + hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:32]
