"""The text of a request that the journal has kept. Such a record holds the body as the caller sent it."""

from __future__ import annotations

import msgspec

from tierwise import wire
from tierwise.core.errors import RequestError
from tierwise.core.request import Prompt


def prompt_of(body: str) -> Prompt | None:
    """What was asked, or None where the body cannot be read any more. The journal does not say which door it came
    through: only Anthropic's has `system` beside the messages, and what both take both read alike."""
    data = body.encode("utf-8", "replace")
    try:
        tree = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError):
        return None
    is_anthropic = isinstance(tree, dict) and ("system" in tree or "stop_sequences" in tree)
    for name in ("anthropic", "openai_chat") if is_anthropic else ("openai_chat", "anthropic"):
        try:
            return wire.codec(name).read(data, {}).prompt
        except RequestError:
            continue
    return None


def text_of(body: str) -> str | None:
    """The whole conversation as one text; of a single message, that message. None where there is none to read."""
    prompt = prompt_of(body)
    if prompt is None or not any(turn.text for turn in prompt.turns):
        return None
    if len(prompt.turns) == 1:
        return prompt.turns[0].text
    return "\n\n".join(f"{turn.role}: {turn.text}" for turn in prompt.turns)
