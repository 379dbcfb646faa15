"""JSON from a caller, read strictly: what two readers could understand differently is refused, never guessed.

Python's own decoder accepts NaN, infinities, duplicate keys and lone surrogates. A gateway that lets them pass may
count one request and send another, so each is a `BadRequest` here. The duplicate-key hook costs 6 µs for 1 kB and
65 µs for 100 kB (measured), less than any second pass over the tree that we tried.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from difflib import get_close_matches
from typing import Any, NoReturn, cast

import msgspec
import numpy as np

from tierwise.core.errors import BadRequest

Json = dict[str, Any]

MAX_DEPTH = 200  # deeper than any schema people write, far below what a recursive reader can bear
MAX_TOKENS = 10_000_000  # no model writes this much in one reply
MAX_N = 128
MAX_MESSAGES = 100_000
LARGE_BYTES = 4_096  # from here on numpy looks through a body faster than bytes does

# Spellings by which other gateways let a body choose the host, the key or the headers of the upstream call.
HOST_FIELDS = frozenset(
    (
        "apibase", "apihost", "apikey", "apiurl", "apiendpoint", "azureendpoint", "baseurl", "endpointurl",
        "awsbedrockruntimeendpoint", "customllmprovider", "defaultheaders", "extraheaders", "litellmparams",
        "litellmcredentialname", "modellist", "proxyurl", "vertexcredentials",
    )
)  # fmt: skip


class _Duplicate(ValueError):
    pass


def _pairs(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Duplicate(f"the key {key[:80]!r} stands twice in one object")
            seen.add(key)
    return found


def _float(text: str) -> float:
    number = float(text)
    if number - number != 0.0:  # infinite: the text says more than a double can
        raise ValueError(f"the number {text[:20]} is out of range")
    return number


def _int(text: str) -> int:
    # What fits in no machine word is nobody's token count, and the encoders on the way out could not write it.
    if len(text) > 20 or not -(2**63) <= (number := int(text)) < 2**64:
        raise ValueError(f"the number {text[:20]}… has more than 64 bits")
    return number


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_float=_float, parse_int=_int, parse_constant=_constant)
_SCAN = cast("Any", _DECODER).scan_once
_HALF = re.compile(rb"\\u[dD]")
_BLANKS = " \t\n\r"  # that may stand around JSON
_RAW_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])


def load(body: bytes) -> Json:
    """The body as a tree. Raises BadRequest, without a param, for anything but one strict JSON object."""
    try:
        tree = _tree(body.decode())
        if body.find(b"\\") >= 0 and _may_hold_halves(body):
            json.dumps(tree, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadRequest(
            "The body has half of a surrogate pair (\\ud800 to \\udfff alone), which is no text."
        ) from None
    except UnicodeDecodeError as error:
        raise BadRequest(f"The body is not UTF-8: {error.reason} at byte {error.start}.") from None
    except RecursionError:
        raise BadRequest("The body is nested too deeply.") from None
    except _Duplicate as error:
        raise BadRequest(f"The body is ambiguous: {error}.") from None
    except json.JSONDecodeError as error:
        raise BadRequest(
            f"The body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from None
    except ValueError as error:
        raise BadRequest(f"The body is not valid JSON: {error}.") from None
    if type(tree) is not dict:
        raise BadRequest("The body must be a JSON object.")
    # Brackets count depth from above, texts included: only a body that could be deep is walked.
    if _brackets(body) > MAX_DEPTH and _deeper(tree, MAX_DEPTH):
        raise BadRequest(f"The body is nested more than {MAX_DEPTH} levels deep.")
    return tree


def _tree(text: str) -> Any:
    """As the decoder's own `decode`, which looks for blanks around every body, and knows words for what is wrong."""
    try:
        tree, end = _SCAN(text, 0)
    except StopIteration:
        return _DECODER.decode(text)
    return tree if end == len(text) or not text[end:].strip(_BLANKS) else _DECODER.decode(text)


def _may_hold_halves(body: bytes) -> bool:
    """Whether some \\u escape is in the range of the surrogates, or of the few letters next to it."""
    if len(body) < 4 * LARGE_BYTES:
        return _HALF.search(body) is not None
    array = np.frombuffer(body, dtype=np.uint8)
    at = np.flatnonzero(array[:-2] == ord("\\"))
    return bool(np.any((array[at + 1] == ord("u")) & (array[at + 2] | 0x20 == ord("d"))))


def _brackets(body: bytes) -> int:
    if len(body) < LARGE_BYTES:
        return body.count(b"{") + body.count(b"[")
    array = np.frombuffer(body, dtype=np.uint8)
    return int(np.count_nonzero(array | 0x20 == ord("{")))  # and of [, which is the same but for that bit


def _deeper(tree: Any, depth: int) -> bool:
    """Whether containers nest more than `depth` levels. Level by level, so that its own stack stays flat."""
    level = [tree]
    for _ in range(depth + 1):
        below: list[Any] = []
        for node in level:
            children = node.values() if type(node) is dict else node
            below.extend(child for child in children if type(child) is dict or type(child) is list)
        if not below:
            return False
        level = below
    return True


def raw_fields(body: bytes | msgspec.Raw) -> dict[str, msgspec.Raw]:
    """The top level of an object, each value with its own bytes. For bodies that `load` has accepted."""
    return _RAW_DECODER.decode(body)


def raw_items(array: bytes | msgspec.Raw) -> list[Any]:
    """The items of an array: objects as `raw_fields` gives them, anything else with its own bytes. [] for no array."""
    if bytes(array)[:1] != b"[":
        return []
    found = msgspec.json.decode(array, type=list[msgspec.Raw])
    return [raw_fields(item) if bytes(item)[:1] == b"{" else item for item in found]


# ------------------------------------------------------------------------------------------------ single fields


def bad(param: str, what: str) -> BadRequest:
    return BadRequest(f"{param}: {what}.", param=param)


def kind(value: Any) -> str:
    """What a value is, in the words of JSON."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
    return "an object"


def whole(tree: Json, key: str, low: int, high: int, param: str = "") -> int | None:
    """An optional whole number within bounds; None when absent or null."""
    value = tree.get(key)
    if value is None:
        return None
    if type(value) is not int:
        shown = f"{value!r}" if type(value) is float else kind(value)
        raise bad(param or key, f"must be a whole number from {low} to {high}, not {shown}")
    if not low <= value <= high:
        raise bad(param or key, f"must be a whole number from {low} to {high}, not {value}")
    return value


def number(tree: Json, key: str, low: float, high: float) -> float | None:
    """An optional number within bounds; None when absent or null."""
    value = tree.get(key)
    if value is None:
        return None
    if type(value) is not int and type(value) is not float:
        raise bad(key, f"must be a number from {low:g} to {high:g}, not {kind(value)}")
    if not low <= value <= high:
        raise bad(key, f"must be a number from {low:g} to {high:g}, not {value}")
    return float(value)


def flag(tree: Json, key: str, param: str = "") -> bool:
    """An optional boolean; False when absent or null."""
    value = tree.get(key)
    if value is None:
        return False
    if type(value) is not bool:
        raise bad(param or key, f"must be true or false, not {kind(value)}")
    return value


def text(value: Any, param: str, empty: bool = True) -> str:
    """A required string."""
    if type(value) is not str:
        raise bad(param, f"must be a string, not {kind(value)}")
    if not value and not empty:
        raise bad(param, "must not be empty")
    return value


def record(value: Any, param: str) -> Json:
    """A required object."""
    if type(value) is not dict:
        raise bad(param, f"must be an object, not {kind(value)}")
    return value


def items(value: Any, param: str) -> list[Any]:
    """A required array."""
    if type(value) is not list:
        raise bad(param, f"must be an array, not {kind(value)}")
    return value


def one_of(value: Any, param: str, allowed: Collection[str]) -> str:
    if type(value) is not str or value not in allowed:
        shown = repr(value[:60]) if type(value) is str else kind(value)
        raise bad(param, f"must be one of {', '.join(allowed)}, not {shown}{did_you_mean(value, allowed)}")
    return value


def did_you_mean(value: Any, known: Collection[str]) -> str:
    close = get_close_matches(value[:60], known, n=1) if type(value) is str else []
    return f" (did you mean {close[0]!r}?)" if close else ""


def model_name(tree: Json) -> str:
    value = tree.get("model")
    if type(value) is str and value and len(value) <= 256 and value.isprintable():
        return value
    if value is None:
        raise bad("model", "is missing; 'auto' lets Tierwise choose")
    text(value, "model", empty=False)
    raise bad("model", "must be a printable name of at most 256 characters")


def messages(tree: Json) -> list[Any]:
    value = tree.get("messages")
    if type(value) is list and value and len(value) <= MAX_MESSAGES:
        return value
    if value is None:
        raise bad("messages", "is missing")
    if not items(value, "messages"):
        raise bad("messages", "must hold at least one message")
    raise bad("messages", f"must hold at most {MAX_MESSAGES} messages")


def no_hosts(tree: Json, known: frozenset[str]) -> None:
    """Refuse every field by which a caller would choose where a call goes or with which key."""
    if tree.keys() <= known:
        return
    for key in tree:
        if key not in known and key.replace("_", "").replace("-", "").replace(".", "").lower() in HOST_FIELDS:
            raise bad(
                key[:80], "is not accepted: hosts, keys and headers of a provider come from the configuration only"
            )
