"""decide(snapshot, episode) -> Decision: what to do next, and why. Pure: equal arguments always give an equal decision.

The plans are walked from the start at every question, and the events of the episode say how far the walk has come: a
plan that finds its own event takes it for done. So nothing is remembered between two questions, and a story that is
replayed takes the same way. Branching lives here; what is weighed, what is barred and what is good enough are plain
functions elsewhere.
"""

from __future__ import annotations

import math
from operator import attrgetter

import msgspec

from tierwise.core.accept import agreeing, failed_test
from tierwise.core.attempt import Attempts, Got, Need, Result, Spent
from tierwise.core.catalogue import Model
from tierwise.core.conditions import holds
from tierwise.core.eligible import barred, meant, screened
from tierwise.core.episode import (
    About,
    Answer,
    Ask,
    Call,
    Candidate,
    Decision,
    Episode,
    Fact,
    Grade,
    Reason,
    Refuse,
    Replied,
    Serve,
    Told,
)
from tierwise.core.estimate import estimate_all
from tierwise.core.learned import Trained
from tierwise.core.policy import HELPERS, AskFirst, Best, Cascade, Explore, Keep, Policy, Rules, Use, references
from tierwise.core.promise import Ruling, as_certified, due, ruling
from tierwise.core.refuse import refusal
from tierwise.core.rise import reasons
from tierwise.core.shadow import Due, rest_of, shadowed
from tierwise.core.snapshot import Snapshot
from tierwise.core.weigh import Weighed, baseline_nano, weigh
from tierwise.core.wishes import wishes

Pool = tuple[Model, ...]
_PRICE = attrgetter("price_nano")


def decide(snapshot: Snapshot, episode: Episode) -> Decision:
    """The next step of this episode under this snapshot, with every reason. Never raises for what a policy can say."""
    return _Walk(snapshot, episode).decision()


class _Frame(msgspec.Struct, frozen=True):
    """Where the walk is: the path, who may serve, whether any reply will be delivered, what it is about."""

    at: str
    pool: Pool
    final: bool = True
    about: About = Serve()
    agreeing: int = 0  # of replies that have to say the same, this is to be one
    voice: int = 0  # which of them, from 0

    def down(self, name: str) -> _Frame:
        return msgspec.structs.replace(self, at=f"{self.at}/{name}" if self.at else name)


class _Walk:
    """One walk through the plans. Its lists live as long as one question."""

    def __init__(self, snapshot: Snapshot, episode: Episode) -> None:
        self.snapshot = snapshot
        self.episode = episode
        self.policy: Policy = snapshot.policies[episode.policy]
        self.draw = episode.draw
        self.reasons: list[Reason] = reasons(episode.money)
        self.candidates: dict[str, Candidate] = {}
        self.odds: tuple[tuple[str, float], ...] = ()
        self.due: Due | None = None  # a shadow, should the story end well
        self.attempts = Attempts(snapshot, self.policy, episode, self.candidates, self.reasons)

    def reason(self, at: str, code: str, *facts: tuple[str, Fact]) -> None:
        self.reasons.append(Reason(at, code, facts))

    def decision(self) -> Decision:
        frame = _Frame(at="", pool=self.admitted())
        if pinned := self.episode.pinned:
            result = self.use((pinned,), msgspec.structs.replace(frame, at="pinned"))
        else:
            result = self.reference(self.policy.start, frame)
        step: Call | Answer | Refuse
        match result:
            case Need(call=call):
                step = call
            case Got(event=event):
                step = Answer(self.episode.events[event].at, event)
            case Spent():
                step = refusal(self.episode, self.candidates)
        decision = Decision(
            step=step,
            reasons=tuple(self.reasons),
            candidates=tuple(self.candidates.values()),
            odds=self.odds,
            baseline_nano=self.baseline_nano(),
        )
        return decision if self.due is None else shadowed(self.snapshot, self.episode, decision, self.due)

    def baseline_nano(self) -> int | None:
        baseline = self.candidates.get(self.snapshot.catalogue.baseline)
        if baseline is not None and baseline.cost_nano is not None:
            return baseline.cost_nano
        return baseline_nano(self.snapshot, self.episode)

    def admitted(self) -> Pool:
        """The models that the caller, its key and the catalogue allow; the others leave a reason behind."""
        catalogue, episode, hints = self.snapshot.catalogue, self.episode, self.episode.hints
        if not (episode.grants or hints.deny or hints.allow or hints.locality or episode.pinned or catalogue.refuses):
            return catalogue.by_kind[episode.kind]
        pool = []
        for model in catalogue.models.values():
            code = barred(model, episode, catalogue)
            if not code:
                pool.append(model)
            elif code != "wrong_kind" or episode.pinned == model.id:
                self.drop(model.id, code)
        return tuple(pool)

    def drop(self, model: str, code: str, *facts: tuple[str, Fact]) -> None:
        self.candidates[model] = Candidate(model=model, verdict="dropped", code=code, facts=facts)

    # -------------------------------------------------------------------------------------------- plans

    def reference(self, name: str, frame: _Frame) -> Result:
        """A name that a plan refers to: a plan, else a tier or a model."""
        plan, frame = self.policy.plans.get(name), frame.down(name)
        match plan:
            case Best():
                return self.best(plan, frame)
            case Keep():
                return self.keep(plan, frame)
            case None:
                return self.use((name,), frame)
            case Use(use=names):
                return self.use(names, frame)
            case Rules():
                return self.rules(plan, frame)
            case AskFirst():
                return self.ask(plan, frame)
            case Cascade():
                return self.cascade(plan, frame)
            case Explore():
                return self.explore(plan, frame)

    def keep(self, plan: Keep, frame: _Frame) -> Result:
        out = screened(frame.pool, plan.keep, self.episode)
        if out:
            for name, code in out.items():
                self.drop(name, code)
            frame = msgspec.structs.replace(frame, pool=tuple([each for each in frame.pool if each.id not in out]))
        self.reason(frame.at, "kept", ("models", len(frame.pool)), ("dropped", len(out)))
        return self.reference(plan.then, frame)

    def use(self, names: tuple[str, ...], frame: _Frame) -> Result:
        ordered = self.weighed(names, frame)
        return self.attempts.first(frame.at, ordered, frame.final, frame.about, code="order")

    def best(self, plan: Best, frame: _Frame) -> Result:
        if plan.promise:
            return self.promised(plan, plan.promise, frame)
        ordered = self.weighed(plan.best, frame)
        if plan.floor:  # else nobody is below it
            floored = tuple([each for each in ordered if each.quality.mid >= plan.floor])
            if ordered and not floored:
                self.reason(frame.at, "floor_unreachable", ("floor", plan.floor))
                ordered = tuple(sorted(ordered, key=lambda each: -each.quality.mid))
                return self.attempts.first(frame.at, ordered, frame.final, frame.about, code="quality")
            for each in ordered:
                if each.quality.mid < plan.floor:
                    self.attempts.note(each, "passed_over", "below_floor", ("floor", plan.floor))
            ordered = floored
        ordered = tuple(sorted(ordered, key=_PRICE))
        return self.attempts.first(frame.at, ordered, frame.final, frame.about, code="price")

    def promised(self, plan: Best, name: str, frame: _Frame) -> Result:
        """Whom the promise lets answer, then its reference. One that nobody made is no ground to save on."""
        found = self.ruling(name, frame)
        self.reason(frame.at, found.code, ("promise", name), ("workload", self.episode.workload))
        names = tuple(model.id for model in meant(plan.best, frame.pool) if model.id in found.models)
        safe = tuple(dict.fromkeys(each for each in (found.reference, self.snapshot.catalogue.reliable) if each))
        turn = due(found, frame.voice, lambda model: self.expected_loss(found, model))
        weighed = self.weighed(names, frame)
        for each in weighed:
            if each.model.id != turn:
                loss = self.expected_loss(found, each.model.id)
                code = "beyond_promise" if loss > found.threshold else "promise_names_another"
                self.attempts.note(each, "passed_over", code, ("expected_loss", round(loss, 4)))
        passing = tuple(each for each in weighed if each.model.id == turn)
        if not frame.agreeing:  # else the reference is a rung further up, and its one voice would agree with nobody
            passing += self.weighed(safe, frame)
        return self.attempts.first(frame.at, passing, frame.final, frame.about, code="promise")

    def expected_loss(self, found: Ruling, model: str) -> float:
        """Against the promise's reference. An agreement is judged by the model whose reply would be delivered."""
        catalogue = self.snapshot.catalogue.models
        pair = tuple(catalogue[each] for each in (found.judged or model, found.reference) if each in catalogue)
        if len(pair) < 2:
            return math.inf
        judged, best = estimate_all(self.snapshot.estimator, self.episode.features, pair, self.episode.workload)
        return best.quality.mid - judged.quality.mid

    def ruling(self, promise: str, frame: _Frame) -> Ruling:
        estimator = self.snapshot.estimator
        return ruling(
            self.snapshot.promises.get(promise),
            self.episode.workload,
            estimator.id if isinstance(estimator, Trained) else "",
            agreeing=frame.agreeing,
        )

    def rules(self, plan: Rules, frame: _Frame) -> Result:
        for i, rule in enumerate(plan.rules):
            if holds(rule.when, self.episode):
                self.reason(frame.at, "rule", ("rule", i + 1), ("then", rule.then))
                return self.reference(rule.then, frame)
        self.reason(frame.at, "no_rule", ("otherwise", plan.otherwise))
        return self.reference(plan.otherwise, frame)

    def ask(self, plan: AskFirst, frame: _Frame) -> Result:
        """A router is an optimisation: a helper that fails costs its answer, never the request."""
        question = plan.ask
        helper = _Frame(
            at=f"{frame.at}?",
            pool=self.admitted(),
            final=False,
            about=Ask(question.topic, question.question, question.answers),
        )
        match self.reference(question.of, helper):
            case Need() as need:
                return need
            case Got(event=event):
                told = self.episode.events[event]
                if isinstance(told, Told):
                    answer = told.answer or "nothing usable"
                    self.reason(frame.at, "told", ("topic", told.topic), ("answer", answer), ("cached", told.cached))
            case Spent():
                self.reason(frame.at, "helper_failed", ("topic", question.topic))
        return self.reference(plan.then, frame)

    def explore(self, plan: Explore, frame: _Frame) -> Result:
        exploration, episode = plan.explore, self.episode
        models = meant(exploration.among, frame.pool)
        may = episode.hints.explore and episode.criticality in exploration.criticality
        if not (models and may and isinstance(frame.about, Serve)):
            return self.reference(plan.then, frame)
        rate, draw = exploration.rate, self.draw
        if exploration.shadow:
            chance, self.draw = rest_of(draw, rate)
            if chance is not None and self.due is None:
                graders = meant((exploration.grader,), self.admitted()) if exploration.grader else ()
                self.due = Due(exploration, models, graders, frame.at, chance)
            return self.reference(plan.then, frame)
        share = rate / len(models)
        odds = {model.id: share for model in models}
        for model, chance in self.usual(plan.then, frame, draw):
            odds[model] = odds.get(model, 0.0) + (1 - rate) * chance
        # At a rate of 0 or of 1 some model has no chance, which are no odds to be chosen at.
        self.odds = self.odds or tuple(sorted((model, chance) for model, chance in odds.items() if chance > 0))
        if draw >= rate:
            # The rest of the draw is again uniform, so an exploration further down is independent of this one.
            self.draw = (draw - rate) / (1 - rate)
            return self.reference(plan.then, frame)
        chosen = models[min(int(draw / share), len(models) - 1)]
        self.reason(frame.at, "explored", ("rate", rate), ("odds", round(odds[chosen.id], 6)))
        self.attempts.explored = True
        result = self.use((chosen.id,), frame.down("explore"))
        self.attempts.explored = False
        return self.reference(plan.then, frame) if isinstance(result, Spent) else result

    def usual(self, name: str, frame: _Frame, draw: float) -> tuple[tuple[str, float], ...]:
        """The chance of each model where this exploration's dice say no, as it was before anything below was called:
        what came of a call since then must not change the odds it was made at. Empty when nothing would serve, or
        when only a helper who was not asked could say."""
        events = self.episode.events
        before = tuple(
            event for event in events if not event.at.startswith(f"{frame.at}/") or "?" in event.at[len(frame.at) :]
        )
        walk = _Walk(self.snapshot, msgspec.structs.replace(self.episode, events=before))
        walk.draw = draw
        result = walk.reference(name, frame)
        if walk.odds or not isinstance(result, Need) or not isinstance(result.call.about, Serve):
            return walk.odds
        return ((result.call.model, 1.0),)

    # -------------------------------------------------------------------------------------------- cascades

    def cascade(self, plan: Cascade, frame: _Frame) -> Result:
        rejected: dict[int, Replied] = {}
        replies: dict[int, Replied] = {}  # those of them that rungs further up may count or be shown
        top = len(plan.cascade) - 1
        for i, name in enumerate(plan.cascade):
            rung = msgspec.structs.replace(frame, at=f"{frame.at}[{i}]", final=frame.final and i == top)
            if i < top and plan.accept.agreement:
                rung = msgspec.structs.replace(rung, agreeing=plan.accept.agreement)
            promise = self.promise_of(name) if i < top else None
            if plan.pass_up and replies and not promise:
                rung = msgspec.structs.replace(rung, about=Serve(drafts=tuple(replies)))
            if i < top and self.skipped(plan, i, rung):
                continue
            own = {} if promise else replies
            tests = as_certified(plan, self.snapshot.promises.get(promise or ""))
            result = self.rung(tests, name, rung, own, last=i == top)
            rejected |= own
            if not isinstance(result, Spent):
                return result
        if rejected:
            # No rung above could answer. A reply that was not accepted is still better than none.
            self.reason(frame.at, "kept_lower_reply")
            return Got(max(rejected))
        return Spent()

    def promise_of(self, name: str) -> str | None:
        """The promise that a rung keeps. Its models see no drafts, its replies are tested among themselves, and the
        reference answers without having seen them, as when it was certified."""
        rung = self.policy.plans.get(name)
        return rung.promise if isinstance(rung, Best) else None

    def rung(self, plan: Cascade, name: str, frame: _Frame, replies: dict[int, Replied], *, last: bool) -> Result:
        """One rung: a reply, or as many as have to agree, each by another model; then the tests."""
        wanted = 1 if last else plan.accept.agreement or 1
        asked = self.voices(name, frame) if wanted > 1 else 1
        used: set[str] = set()
        for k in range(asked):
            pool = tuple(model for model in frame.pool if model.id not in used)
            again = msgspec.structs.replace(frame, at=f"{frame.at}#{k + 1}" if k else frame.at, pool=pool, voice=k)
            result = self.reference(name, again)
            if isinstance(result, Need):
                return result
            if isinstance(result, Spent):
                break
            reply = self.episode.events[result.event]
            if not isinstance(reply, Replied):
                break
            if last:
                return result
            used.add(reply.model)
            replies[result.event] = reply
            if self.tested(plan, frame, replies, result.event, quietly=k + 1 < asked):
                return self.graded(plan, frame, replies, result.event)
        return Spent()

    def voices(self, name: str, frame: _Frame) -> int:
        """How many models an agreement may ask: as many as have to agree, and where its promise says so all it has."""
        found = self.ruling(self.promise_of(name) or "", frame)
        more = bool(found.models) and self.expected_loss(found, found.judged) <= found.further
        return len(found.models) if more else frame.agreeing

    def tested(self, plan: Cascade, frame: _Frame, replies: dict[int, Replied], event: int, *, quietly: bool) -> bool:
        """Whether the tests that need nobody's help accept a reply; the reason is told either way."""
        if plan.accept.agreement is not None:
            found = agreeing(replies, plan.accept)
            if found is None:
                if not quietly:
                    self.reason(frame.at, "not_agreed", ("replies", len(replies)), ("wanted", plan.accept.agreement))
                return False
        code, figure = failed_test(replies[event], plan.accept, self.episode.features)
        if code:
            self.reason(frame.at, code, ("model", replies[event].model), ("figure", figure))
        return not code

    def graded(self, plan: Cascade, frame: _Frame, replies: dict[int, Replied], event: int) -> Result:
        """The reply, when there is no grader or it is content. A grader that fails accepts nothing."""
        accept = plan.accept
        if accept.agreement is not None:
            found = agreeing(replies, accept)
            event = event if found is None else found
        if accept.grader is not None:
            model = replies[event].model
            others = tuple(each for each in self.admitted() if each.id != model)
            helper = _Frame(at=f"{frame.at}!{event}", pool=others, final=False, about=Grade(event, accept.rubric))
            match self.reference(accept.grader, helper):
                case Need() as need:
                    return need
                case Got(event=graded):
                    told = self.episode.events[graded]
                    score = told.score if isinstance(told, Told) else None
                    if score is None or score < accept.at_least:
                        self.reason(frame.at, "grade_low", ("model", model), ("score", score))
                        return Spent()
                    self.reason(frame.at, "grade_good", ("model", model), ("score", score))
                case Spent():
                    self.reason(frame.at, "grader_failed", ("model", model))
                    return Spent()
        self.reason(frame.at, "accepted", ("model", replies[event].model))
        return Got(event)

    def skipped(self, plan: Cascade, i: int, frame: _Frame) -> bool:
        """A rung is left out when it has to keep a promise that nobody certified, or when the caller's deadline would
        not leave the time for the last rung after it."""
        at, promise = frame.at, self.promise_of(plan.cascade[i])
        if promise and not (found := self.ruling(promise, frame)).models:
            self.reason(at, found.code, ("promise", promise), ("workload", self.episode.workload))
            return True
        deadline = self.episode.hints.max_latency_ms
        if deadline is None or any(event.at.startswith(at) for event in self.episode.events):
            return False
        needed = self.quickest_ms(plan.cascade[i]) + self.quickest_ms(plan.cascade[-1])
        left = deadline - self.episode.elapsed_ms
        if needed > left:
            self.reason(at, "rung_skipped", ("left_ms", left), ("needed_ms", needed))
        return needed > left

    def quickest_ms(self, name: str) -> int:
        """The least expected latency among the models that a reference can lead to."""
        names, waiting = set(), [name]
        while waiting:
            at = waiting.pop()
            plan = self.policy.plans.get(at)
            if plan is None:
                names.add(at)
            else:
                waiting += [to for key, to in references(plan) if key not in HELPERS]
        models = meant(tuple(names), self.admitted())
        weighed = weigh(self.snapshot, self.episode, models, self.policy.amounts)
        return min((each.latency_ms for each in weighed), default=0)

    # -------------------------------------------------------------------------------------------- candidates

    def weighed(self, names: tuple[str, ...], frame: _Frame) -> tuple[Weighed, ...]:
        """The candidates with what they are expected to cost and be worth, less those that are resting, too weak or too
        slow for what the caller asked. A wish that nobody can meet is met as nearly as can be: the request goes on."""
        models = meant(names, frame.pool)
        if self.episode.resting:
            resting = dict(self.episode.resting)
            for model in models:
                if model.id in resting:
                    self.drop(model.id, "resting", ("for_ms", resting[model.id]))
            models = tuple([model for model in models if model.id not in resting])
        weighed = weigh(self.snapshot, self.episode, models, self.policy.amounts)
        if not isinstance(frame.about, Serve) or not weighed:
            return weighed
        for wish in wishes(weighed, self.episode):
            if wish.unreachable:
                self.reason(frame.at, f"{wish.name}_unreachable", (wish.name, wish.asked))
            for each in wish.others:
                self.attempts.note(each, "passed_over", wish.code, (wish.name, wish.asked))
            weighed = wish.kept
        return weighed
