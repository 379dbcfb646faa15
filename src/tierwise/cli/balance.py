"""`tierwise balance`: what is left in every budget above a key, asked of a running gateway, once or followed live.

Reads nothing but the gateway's own `GET /v1/balance`, so it works from any machine that can reach it.
"""

from __future__ import annotations

import contextlib
import json as plain_json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode, urlsplit

import typer

from tierwise.cli.common import clean
from tierwise.core.errors import RequestError, TierwiseError
from tierwise.core.money import usd_text
from tierwise.core.words import counted

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

ANSWER_S = 10.0
# The gateway says something every 15 s; one that does not is gone without having said so.
SILENCE_S = 40.0
AGAIN_S = 1.0
COLUMNS = 80
MOST_BYTES = 8 << 20
BAR = 40

Json = dict[str, Any]


class Gone(TierwiseError):
    """The gateway is not there, or went away; coming back may help."""


def balance(
    watch: Annotated[bool, typer.Option("--watch", help="Follow it live, until Ctrl-C.")] = False,
    session: Annotated[str, typer.Option(help="The budgets of this session too.")] = "",
    workflow: Annotated[str, typer.Option(help="The budgets of this workflow too.")] = "",
    url: Annotated[str, typer.Option(envvar="TIERWISE_URL", help="The gateway; else http://127.0.0.1:4100.")] = "",
    key: Annotated[str, typer.Option(envvar="TIERWISE_KEY", help="Whose balance; best given as TIERWISE_KEY.")] = "",
    json: Annotated[bool, typer.Option("--json", help="JSON; with --watch one line for each change.")] = False,
    host: Annotated[str, typer.Option(envvar="TIERWISE_HOST", hidden=True)] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="TIERWISE_PORT", hidden=True)] = 4100,
) -> None:
    """Show what is left in every budget and credit above a key."""
    gateway = Gateway(url or f"http://{_reachable(host)}:{port}", key, session, workflow)
    if not watch:
        told = gateway.ask()
        print(plain_json.dumps(told, indent=2) if json else "\n".join(picture(told, gateway.name, _columns())))
        return
    show: contextlib.AbstractContextManager[Callable[[Json], None]]
    if json:
        show = contextlib.nullcontext(lambda told: print(plain_json.dumps(told), flush=True))
    else:
        show = _drawn(gateway.name)
    with show as draw:
        for told in followed(gateway, lambda sentence: print(f"tierwise: {sentence}", file=sys.stderr, flush=True)):
            draw(told)


def _reachable(host: str) -> str:
    """An address to bind is not always one to ask."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared, not bound
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


# ------------------------------------------------------------------------------------------------ asking


class Gateway:
    """Where to ask and with which key. The key goes to this address and to no other: redirects are not followed."""

    def __init__(self, url: str, key: str, session: str = "", workflow: str = "") -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            self._port = parts.port
        except ValueError:
            self._port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or self._port == -1 or parts.username:
            raise RequestError(f"{url[:200]!r} is no address of a gateway; give --url http://HOST:PORT", status=400)
        self.name = f"{parts.scheme}://{parts.netloc}"
        self._host, self._tls = parts.hostname, parts.scheme == "https"
        asked = {name: value for name, value in (("session", session), ("workflow", workflow)) if value}
        base = parts.path.rstrip("/").removesuffix("/v1")
        self._path = f"{base}/v1/balance{'?' if asked else ''}{urlencode(asked, quote_via=quote)}"
        self._key = key.strip()

    def ask(self) -> Json:
        """The balances now. Raises Gone, or RequestError with what the gateway says."""
        with self._open("application/json", ANSWER_S) as response:
            return _object(response.read(MOST_BYTES))

    def follow(self) -> Iterator[Json]:
        """The balances now and after every change. Raises Gone when the stream ends, however it ends."""
        with self._open("text/event-stream", SILENCE_S) as response:
            name, data = "", b""
            while line := response.readline(MOST_BYTES):
                if not line.endswith(b"\n"):
                    raise Gone(f"{self.name} broke off in the middle of a line")
                field, _, value = line.rstrip(b"\r\n").partition(b":")
                if field == b"event":
                    name = value.strip().decode("utf-8", "replace")
                elif field == b"data":
                    data += value.removeprefix(b" ")
                elif not line.strip() and data:
                    if name == "balance":
                        yield _object(data)
                    elif name == "end":
                        self._ended(_object(data))
                    name, data = "", b""
        raise Gone(f"{self.name} has ended the stream")

    def _ended(self, told: Json) -> None:
        if told.get("reason") == "draining":
            raise Gone(f"{self.name} is shutting down")
        raise RequestError(f"{self.name}: {clean(told.get('message'))}", status=401)

    @contextlib.contextmanager
    def _open(self, accept: str, timeout_s: float) -> Iterator[HTTPResponse]:
        from http.client import HTTPException

        headers = {"accept": accept, **({"authorization": f"Bearer {self._key}"} if self._key else {})}
        connection = self._connection(timeout_s)
        try:
            try:
                connection.request("GET", self._path, headers=headers)
            except (UnicodeEncodeError, ValueError):
                raise RequestError("the key holds letters that no key has; is it the right one?", status=400) from None
            response = connection.getresponse()
            if response.status != 200:
                raise self._refused(response.status, response.read(MOST_BYTES))
            yield response
        except (OSError, HTTPException) as error:
            why = "it says nothing" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            raise Gone(f"{self.name} does not answer ({why}); is `tierwise serve` running there?") from None
        finally:
            connection.close()

    def _connection(self, timeout_s: float) -> HTTPConnection:
        import http.client
        import ssl

        if not self._tls:
            return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        checked = ssl.create_default_context()
        return http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=checked)

    def _refused(self, status: int, body: bytes) -> TierwiseError:
        try:
            message = clean(plain_json.loads(body)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            message = f"it answers {status}, and not as a gateway does"
        if status == 401:
            message += ". Give the key as TIERWISE_KEY or with --key"
        said = f"{self.name}: {message}"
        return Gone(said) if status in (502, 503, 504) else RequestError(said, status=status)


def followed(
    gateway: Gateway, say: Callable[[str], None], wait: Callable[[float], None] = time.sleep
) -> Iterator[Json]:
    """Every change, over restarts of the gateway: `say` is told when it goes. Raises Gone when it never was there."""
    seen, lost = False, ""
    while True:
        try:
            for told in gateway.follow():
                if lost:
                    say(f"{gateway.name} is back")
                seen, lost = True, ""
                yield told
        except Gone as error:
            if not seen:
                raise
            if not lost:
                say(f"{error}; trying again until it is back")
            lost = str(error)
        wait(AGAIN_S)


def _object(body: bytes) -> Json:
    try:
        found = plain_json.loads(body)
        if isinstance(found, dict) and isinstance(found["balances"] if "reason" not in found else [], list):
            return found
    except (ValueError, KeyError, RecursionError):
        pass
    raise TierwiseError("this is no answer of a Tierwise gateway; is the address right?")


# ------------------------------------------------------------------------------------------------ showing


@contextlib.contextmanager
def _drawn(name: str) -> Iterator[Callable[[Json], None]]:
    """At a terminal one picture that is drawn over; in a pipe one picture after the other."""
    if not sys.stdout.isatty():
        yield lambda told: print("\n".join((*picture(told, name, COLUMNS), "")), flush=True)
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(), auto_refresh=False, vertical_overflow="crop") as live:
        yield lambda told: live.update(Text("\n".join(picture(told, name, _columns()))), refresh=True)


def picture(told: Json, name: str, columns: int = COLUMNS) -> list[str]:
    """The lines of one picture, none longer than `columns` (at least 60)."""
    try:
        lines = list(_lines(told, name))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise TierwiseError(f"{name} gives no balances that this version can read") from None
    return [line if len(line) <= columns else line[: columns - 1] + "…" for line in lines]


def _lines(told: Json, name: str) -> Iterator[str]:
    at = clean(told.get("at"))
    money = told.get("price_of_money", 1)
    causes = ", ".join(f"{clean(each['budget'])} {each['price_of_money']:g}" for each in told.get("causes", ()))
    yield f"Balances at {name}  {at}"
    yield f"Price of money {money:g}" + (f", from {causes}" if causes else "")
    further = [clean(name) for name in told.get("not_shown", ())]
    if further:
        whose, options = (" and ".join(each) for each in ([f"{n}s" for n in further], [f"--{n}" for n in further]))
        yield f"{whose.capitalize()} have limits of their own: see {options}"
    elif not told["balances"]:
        yield from ("", "There is no budget and no credit above this key: nothing limits what it spends.")
    for each in told["balances"]:
        yield from ("", *_budget(each, at))


def _budget(each: Json, at: str) -> Iterator[str]:
    what = "credit of the " + clean(each["scope"]) if each["credit"] else clean(each["scope"])
    when = "" if each["window"] == "lifetime" else f" · {clean(each['window'])}"
    yield f"{what} {clean(each.get('subject', ''))}".rstrip() + when + ("" if each["hard"] else " · soft")
    if each["limit_nano"] is not None:
        limit, left = each["limit_nano"], each["left_nano"]
        share = left / limit if limit > 0 else 0.0
        full = min(max(round(share * BAR), 0), BAR)
        yield f"  {'█' * full}{'░' * (BAR - full)} {share:4.0%} left{_resets(each, at)}"
    names = ("left", "spent", "held", "limit")
    amounts = [f"{name} {usd_text(nano)}" for name in names if (nano := each[f"{name}_nano"]) is not None]
    yield f"  {'  '.join(amounts)} USD"
    counts = [
        f"{each[name]['used']:,} of {counted(each[name]['limit'], noun)}{' at once' * (name == 'parallel')}"
        for name, noun in (("steps", "step"), ("calls", "call"), ("tokens", "token"), ("parallel", "call"))
        if each[name]["limit"] is not None
    ]
    if each["price_of_money"] > 1:
        counts.append(f"price of money {each['price_of_money']:g}")
    if counts:
        yield "  " + " · ".join(counts)


def _resets(each: Json, at: str) -> str:
    if not each["resets_at"]:
        return ""
    try:
        seconds = int((datetime.fromisoformat(each["resets_at"]) - datetime.fromisoformat(at)).total_seconds())
    except (ValueError, TypeError):
        return ""
    days, hours, minutes = seconds // 86_400, seconds // 3_600 % 24, seconds // 60 % 60
    if days > 0:
        return f", resets in {days} d {hours} h"
    return f", resets in {hours} h {minutes} min" if hours else f", resets in {max(minutes, 0)} min {seconds % 60} s"


def _columns() -> int:
    return max(shutil.get_terminal_size((COLUMNS, 24)).columns, 60)
