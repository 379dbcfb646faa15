"""Which of some candidates, in their order, is to be called next, seen what was tried: fallback, retry, ceilings.

The one place where a `Call` is made, so the one place where its worst case and its ceiling are worked out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from tierwise.core.budget import Denial, DenialCode
from tierwise.core.episode import (
    AGAIN,
    About,
    Ask,
    Call,
    Candidate,
    Denied,
    Episode,
    Fact,
    Failed,
    Grade,
    Reason,
    Replied,
    Serve,
    Told,
    Verdict,
)
from tierwise.core.policy import Policy
from tierwise.core.snapshot import Snapshot
from tierwise.core.weigh import (
    Weighed,
    affordable_tokens,
    ceiling_within,
    is_bounded,
    worst_case,
)

# A helper answers with a word or a number; reasoning models need a little room before it.
HELPER_TOKENS = 256
# What a helper is shown of a request and of a reply; enough for a judgement, bounded for the bill.
HELPER_CHARACTERS = 6_000
_HELPER_FRAME_TOKENS = 600
_DRAFT_FRAME_TOKENS = 300
# Two models that call the request wrong are right: it is the request.
REJECTIONS = 2
# Nobody waits longer than this between two attempts of one request.
MAX_WAIT_MS = {"interactive": 2_000, "background": 10_000, "batch": 30_000}
_BACKOFF_MS = 200
# What the ledger would say to every other model as well, so nobody else is asked.
ENDS: tuple[DenialCode, ...] = ("loop_stopped", "deadline_passed", "step_limit", "call_limit", "parallel_limit")
# What only another model can mend: no ceiling of this one does.
_NOT_HERE: tuple[DenialCode, ...] = (*ENDS, "unbounded", "retry_budget")
# What stands behind the chosen one, by what decided.
_BEHIND = {"order": "later_in_order", "price": "higher_price", "quality": "lower_quality", "promise": "later_in_order"}
_MONEY: tuple[DenialCode, ...] = ("budget_exceeded", "held_by_others", "credit_exhausted")


class Need(msgspec.Struct, frozen=True):
    """The walk cannot go on before this call was made."""

    call: Call


class Got(msgspec.Struct, frozen=True):
    """The plan is done; this event holds what it was for."""

    event: int


class Spent(msgspec.Struct, frozen=True):
    """The plan has nobody left to ask."""


Result = Need | Got | Spent


class Attempts:
    """The attempts of one walk. `candidates` and `reasons` are the walk's own notes."""

    explored = False  # whether what is being looked for is exploration's choice

    def __init__(
        self,
        snapshot: Snapshot,
        policy: Policy,
        episode: Episode,
        candidates: dict[str, Candidate],
        reasons: list[Reason],
    ) -> None:
        self.snapshot = snapshot
        self.policy = policy
        self.episode = episode
        self.candidates = candidates
        self.reasons = reasons

    def first(
        self,
        at: str,
        ordered: tuple[Weighed, ...],
        final: bool,
        about: About,
        *,
        code: Literal["order", "price", "quality", "promise"],
    ) -> Result:
        """The reply that this path already has, else a call of the first candidate that can still be asked."""
        tried: dict[str, Failed | Denied] = {}  # the last of each model
        mine = []
        for i, event in enumerate(self.episode.events):
            if event.at == at:
                if isinstance(event, Replied | Told):
                    return Got(i)
                tried[event.model] = event
                mine.append(event)
        if self._exhausted(at, about):
            return Spent()
        for place, each in enumerate(ordered):
            last = None
            if tried and (last := tried.get(each.model.id)):
                if isinstance(last, Failed):
                    self.note(each, "passed_over", "failed", ("kind", last.kind), ("status", last.status))
                    continue
                if last.denial.code in _NOT_HERE:
                    self.note(each, "passed_over", last.denial.code, ("scope", last.denial.scope))
                    continue
            call = self.call(at, each, final, about, tried=last)
            if call is None:
                continue
            self._note_all(ordered, place, code)
            self.say(at, "chosen", ("model", each.model.id), ("by", code))
            return Need(call)
        return self._again(at, ordered, mine, final, about)

    def say(self, at: str, code: str, *facts: tuple[str, Fact]) -> None:
        self.reasons.append(Reason(at, code, facts))

    def note(
        self,
        each: Weighed,
        verdict: Verdict,
        code: str,
        *facts: tuple[str, Fact],
    ) -> None:
        self.candidates[each.model.id] = Candidate(
            model=each.model.id,
            verdict=verdict,
            code=code,
            quality=each.quality,
            cost_nano=each.cost_nano,
            latency_ms=each.latency_ms,
            price_nano=each.price_nano,
            facts=facts,
        )

    def _note_all(self, ordered: tuple[Weighed, ...], chosen: int, code: str) -> None:
        best = ordered[chosen]
        self.note(best, "chosen", code)
        verdict: Verdict = "next"
        for each in ordered[chosen + 1 :]:
            over = (("over_nano", each.price_nano - best.price_nano),) if code == "price" else ()
            self.note(each, verdict, _BEHIND[code], *over)
            verdict = "passed_over"

    def _exhausted(self, at: str, about: About) -> bool:
        """The limits of one request: failed attempts, calls of every kind, rejections."""
        events = self.episode.events
        if not events and isinstance(about, Serve) and self.policy.calls > 0 and self.policy.attempts > 0:
            return False  # nothing was done yet
        calls = sum(not isinstance(event, Denied) and not getattr(event, "cached", False) for event in events)
        replied = any(isinstance(event, Replied) for event in events)
        # The last call is the reply's: helpers that used it up would have the request refused, and be paid for it.
        kept = 0 if replied or isinstance(about, Serve) else 1
        if calls >= self.policy.calls - kept:
            self.say(at, "calls_exhausted", ("calls", calls))
            return True
        if any(denial.code in ENDS for denial in self._told_no()):
            return True  # a session without steps has none for any model
        if not isinstance(about, Serve):
            # A helper is tried once: it is not worth the request's own attempts.
            return any(event.at == at and isinstance(event, Failed | Denied) for event in events)
        failed = [event for event in events if isinstance(event, Failed) and not event.helper]
        if len(failed) >= self.policy.attempts:
            self.say(at, "attempts_exhausted", ("attempts", len(failed)))
            return True
        return sum(event.kind == "rejected" for event in failed) >= REJECTIONS

    def call(
        self,
        at: str,
        each: Weighed,
        final: bool,
        about: About,
        *,
        tried: Failed | Denied | None = None,
        wait_ms: int = 0,
    ) -> Call | None:
        """The call of this candidate, or None, with a note, when it cannot be paid for."""
        found = self._ceiling(each, about)
        # Asking the ledger the same again would get the same answer.
        if found is None or (isinstance(tried, Denied) and (found[0] is None or self._denials(at, each) > 1)):
            self.note(each, "passed_over", "cannot_be_paid")
            return None
        began = bool(self.episode.events)
        if began and self._dearer(each):
            self.note(each, "passed_over", "dearer_fallback")
            return None
        ceiling, worst, tokens = found
        if ceiling is not None:
            self.say(at, "ceiling_set", ("max_tokens", ceiling))
        return Call(
            at=at,
            model=each.model.id,
            worst_case_nano=worst,
            about=about,
            final=final,
            max_tokens=ceiling,
            tokens=tokens,
            bounded=is_bounded(each.model, self.episode, worst)
            if isinstance(about, Serve)
            else each.cost_nano is not None,
            wait_ms=wait_ms,
            explored=self.explored,
            again=began and self._failed_there(each.model.provider),
        )

    def _told_no(self) -> list[Denial]:
        """What the ledger has refused, less what only the budget of exploration may have had against it."""
        events = (event for event in self.episode.events if isinstance(event, Denied))
        return [event.denial for event in events if self.explored or not event.explored]

    def _failed_there(self, provider: str) -> bool:
        models = self.snapshot.catalogue.models
        failed = [event.model for event in self.episode.events if isinstance(event, Failed)]
        return any(model in models and models[model].provider == provider for model in failed)

    def _denials(self, at: str, each: Weighed) -> int:
        return sum(
            isinstance(event, Denied) and event.at == at and event.model == each.model.id
            for event in self.episode.events
        )

    def _dearer(self, each: Weighed) -> bool:
        """Whether a fallback would cost more than what failed, where the policy does not want that."""
        if self.policy.dearer:
            return False
        failed = {event.model for event in self.episode.events if isinstance(event, Failed) and not event.helper}
        if not failed or each.model.id in failed:
            return False
        costs = [self.candidates[model].cost_nano for model in failed if model in self.candidates]
        known = [cost for cost in costs if cost is not None]
        return each.cost_nano is None or (bool(known) and each.cost_nano > max(known))

    def _ceiling(self, each: Weighed, about: About) -> tuple[int | None, int, int] | None:
        """(the ceiling to send, None for the caller's own; worst case in money; in tokens); None when no ceiling can be
        paid.

        A caller's ceiling is never raised, and lowered only where the policy says so. Where the caller gave none, ours
        is what is affordable, as long as the reply that is expected fits under it.
        """
        if not isinstance(about, Serve):
            return self._helper_ceiling(each, about)
        model, episode = each.model, self.episode
        asked = episode.features.max_tokens
        own = asked if asked is not None else model.max_output_tokens
        added = self._drafts_bound(about) if about.drafts else 0
        free = model.kind != "embedding" and (asked is None or self.policy.clamp)
        wanted = self._within_tokens(each, own, added) if episode.events else own
        if wanted < own and (not free or wanted < self._expected(each, own)):
            return None
        worst, tokens = worst_case(model, episode, wanted, added)
        limit = self._affordable(denied_only=not free)
        told = False
        if model.price is not None and limit is not None:
            if worst <= limit:
                # Where money is counted, the ceiling that was held is the one that the provider is told.
                told = free and asked is None
            elif not free:
                return None
            else:
                within = min(affordable_tokens(model, episode, limit, added), wanted)
                # What was left at the door is no refusal: only the ledger knows whose limit it is and if waiting helps.
                if within < min(self._expected(each, own), wanted):
                    known = self._affordable(denied_only=True)
                    if known is not None and worst > known:
                        return None
                else:
                    wanted, told = within, True
                    worst, tokens = worst_case(model, episode, wanted, added)
        return (wanted if told or wanted < own else None), worst, tokens

    def _helper_ceiling(self, each: Weighed, about: Ask | Grade) -> tuple[None, int, int] | None:
        worst, tokens = worst_case(each.model, self._helper_episode(about), HELPER_TOKENS)
        limit = self._affordable(denied_only=True)
        return None if limit is not None and worst > limit else (None, worst, tokens)

    def _expected(self, each: Weighed, own: int) -> int:
        """The tokens of one reply, as expected, under the ceiling of its own."""
        return max(1, min(-(-each.output_tokens // self.episode.features.n), own))

    def _within_tokens(self, each: Weighed, ceiling: int, added: int) -> int:
        """The ceiling, or what a limit of tokens that has refused this request leaves of it; 0 for nothing."""
        left = [
            denial.limit - (denial.used or 0)
            for denial in self._told_no()
            if denial.code == "token_limit" and denial.limit is not None
        ]
        if not left or worst_case(each.model, self.episode, ceiling, added)[1] <= left[-1]:
            return ceiling
        return max(0, min(ceiling, ceiling_within(self.episode, left[-1], added)))

    def _drafts_bound(self, about: Serve) -> int:
        """The tokens, at most, of the rejected replies that are passed on: four bytes a character, and words around."""
        facts = [event.facts for i in about.drafts if isinstance(event := self.episode.events[i], Replied)]
        return sum(4 * each.characters + _DRAFT_FRAME_TOKENS for each in facts)

    def _affordable(self, *, denied_only: bool) -> int | None:
        """What a hold can be, as far as we know; None when nothing limits it. The ledger has the last word."""
        episode = self.episode
        most, left = episode.hints.max_cost_nano, episode.money.left_nano
        if most is None and not episode.events:
            return None if denied_only else left
        limits = [denial.affordable_nano for denial in self._told_no() if denial.code in _MONEY][-1:]
        if most is not None:
            limits.append(most - sum(getattr(event, "cost_nano", 0) or 0 for event in episode.events))
        if left is not None and not denied_only:
            limits.append(left)
        return min(limits) if limits else None

    def _helper_episode(self, about: Ask | Grade) -> Episode:
        """What a helper is shown of this request, as one of its own: at most four bytes, so four tokens, a
        character."""
        features = self.episode.features
        shown = min(features.input_bound_tokens, 4 * HELPER_CHARACTERS) + _HELPER_FRAME_TOKENS
        match about:
            case Ask(question=question, answers=answers):
                shown += 4 * (len(question) + sum(map(len, answers)))
            case Grade(rubric=rubric):
                shown += 4 * (len(rubric) + HELPER_CHARACTERS)
        small = msgspec.structs.replace(features, input_bound_tokens=shown, n=1, reasoning_tokens=0)
        return msgspec.structs.replace(self.episode, features=small)

    def _again(
        self, at: str, ordered: tuple[Weighed, ...], mine: Sequence[object], final: bool, about: About
    ) -> Result:
        """Nobody new is left: the one that failed in passing, and may soon be asked, is asked once more."""
        if not isinstance(about, Serve):
            return Spent()
        failed = [event for event in mine if isinstance(event, Failed)]
        most = MAX_WAIT_MS[self.episode.latency]
        if self.episode.hints.max_latency_ms is not None:
            most = min(most, self.episode.hints.max_latency_ms - self.episode.elapsed_ms)
        waits: list[tuple[int, Weighed]] = []
        for each in ordered:
            own = [event for event in failed if event.model == each.model.id]
            if not own or own[-1].kind not in AGAIN or self._denials(at, each):
                continue
            backoff = round(_BACKOFF_MS * 2 ** (len(own) - 1) * (1 + self.episode.draw))
            wait = own[-1].retry_after_ms if own[-1].retry_after_ms is not None else backoff
            if wait <= most:
                waits.append((wait, each))
        for wait, each in sorted(waits, key=lambda pair: pair[0]):
            call = self.call(at, each, final, about, wait_ms=wait)
            if call is not None:
                self.note(each, "chosen", "retry")
                self.say(at, "retry", ("model", each.model.id), ("wait_ms", wait))
                return Need(call)
        return Spent()
