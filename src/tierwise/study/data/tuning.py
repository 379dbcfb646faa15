"""Examples for fine-tuning a cheaper model: requests that it could not answer well enough, with the reply that a dearer
one gave. Only where texts were kept, only from those who agreed, without what names a person as far as shapes tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Literal

import msgspec

from tierwise.core.episode import Replied
from tierwise.core.ports import Record, Story
from tierwise.core.request import Prompt
from tierwise.study.data.intake import delivered
from tierwise.study.data.prompts import prompt_of
from tierwise.study.data.redact import redact
from tierwise.study.table import group_of

Format = Literal["openai", "plain"]
FORMATS: tuple[Format, ...] = ("openai", "plain")
CONSENT = "tuning"  # the label of a request, or the tag of a key, that says yes or no
PLACES = ("key", "user", "team", "organisation")  # of a payer, that may be named as agreeing
GOOD = 0.5  # a reply that was scored below is no example
WHY = {
    "not answered": "not answered",
    "not escalated": "answered by the first model that was asked",
    "no consent": f"nobody agreed: no label or tag {CONSENT}=yes, and not named with --consent",
    "no text": "prompt or reply was not kept (journal.store_texts)",
    "not plain text": "tools, media or a form that this build cannot read",
    "judged bad": "the delivered reply was scored below 0.5",
    "repeated": "the same prompt is there already",
}


class TuningReport(msgspec.Struct, frozen=True):
    """How many examples there are, what was taken out of them, and what was left out and why (a key of WHY)."""

    examples: int
    redacted: int  # places in the texts
    left_out: tuple[tuple[str, int], ...]


class Tuning:
    """Makes a line of JSON of each story that is an example. `consent`: who agreed, as `key:NAME`, `user:NAME`,
    `team:NAME` or `organisation:NAME`; a label or tag `tuning` says yes or no as well, and a no always holds."""

    def __init__(self, consent: Collection[str] = (), format: Format = "openai") -> None:
        self._consent = frozenset(consent)
        self._format = format
        self._seen: set[int] = set()
        self._left_out: Counter[str] = Counter()
        self._examples = 0
        self._redacted = 0

    def lines(self, story: Story) -> Iterator[bytes]:
        """One line, or none."""
        record = story.record
        why = self._why_not(story)
        prompt = prompt_of(record.prompt) if not why and record.prompt is not None else None
        if not why and (prompt is None or not _is_plain(prompt)):
            why = "not plain text"
        if not why and prompt is not None:
            group = group_of("\n".join(f"{turn.role}: {turn.text}" for turn in prompt.turns))
            if group in self._seen:
                why = "repeated"
            self._seen.add(group)
        if why or prompt is None:
            self._left_out[why] += 1
            return
        self._examples += 1
        yield self._line(prompt, record.reply or "")

    def report(self) -> TuningReport:
        return TuningReport(self._examples, self._redacted, tuple(self._left_out.most_common()))

    def _why_not(self, story: Story) -> str:
        record = story.record
        if record.outcome.status != "answered":
            return "not answered"
        if not _escalated(record):
            return "not escalated"
        if not self._agreed(record):
            return "no consent"
        if not record.prompt or not record.reply:
            return "no text"
        # The latest word of each who spoke.
        said = {(each.payer.key, each.source): each.score for each in story.feedback}
        return "judged bad" if said and min(said.values()) < GOOD else ""

    def _agreed(self, record: Record) -> bool:
        payer = record.episode.payer
        words = {value.casefold() for name, value in (*payer.tags, *record.episode.hints.labels) if name == CONSENT}
        if "no" in words:
            return False
        named = (f"{place}:{value}" for place in PLACES if (value := getattr(payer, place)))
        return "yes" in words or not self._consent.isdisjoint(named)

    def _line(self, prompt: Prompt, reply: str) -> bytes:
        messages = [{"role": turn.role, "content": self._clean(turn.text)} for turn in prompt.turns]
        answer = self._clean(reply)
        if self._format == "openai":
            return msgspec.json.encode({"messages": [*messages, {"role": "assistant", "content": answer}]}) + b"\n"
        if len(messages) == 1:
            return msgspec.json.encode({"prompt": messages[0]["content"], "reply": answer}) + b"\n"
        text = "\n\n".join(f"{each['role']}: {each['content']}" for each in messages)
        return msgspec.json.encode({"prompt": text, "reply": answer}) + b"\n"

    def _clean(self, text: str) -> str:
        cleaned, many = redact(text)
        self._redacted += many
        return cleaned


def _escalated(record: Record) -> bool:
    """Whether another model had replied, and its reply was passed over for the one that was delivered."""
    at = delivered(record)
    events = record.episode.events
    if at is None:
        return False
    last = events[at]
    before = {event.model for event in events[:at] if isinstance(event, Replied)}
    return isinstance(last, Replied) and bool(before - {last.model})


def _is_plain(prompt: Prompt) -> bool:
    """Whether its turns are all there is to it."""
    other = (prompt.tools, prompt.tool_calls, prompt.images, prompt.audio, prompt.documents, prompt.references)
    return not any(other) and bool(prompt.turns) and all(turn.text and turn.role != "tool" for turn in prompt.turns)
