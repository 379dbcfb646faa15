"""Every reason why a policy cannot be used with a catalogue, found when it is loaded and not when a request meets it.

A policy that would silently do less than it says is refused: a name that nothing has, a plan that reaches itself, a
plan that nothing reaches, a rule behind one that always holds, a condition on an answer that nobody is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from difflib import get_close_matches

from tierwise.core.catalogue import Catalogue
from tierwise.core.errors import Problem
from tierwise.core.policy import (
    AskFirst,
    Best,
    Cascade,
    Explore,
    Keep,
    Plan,
    Policy,
    Rules,
    Use,
    When,
    references,
)

MAX_PLANS = 200
MAX_RUNGS = 8
MAX_ANSWERS = 20


def check(policy: Policy, catalogue: Catalogue) -> tuple[Problem, ...]:
    """Every problem, `where` being `plans.NAME.KEY` below the policy; () when the policy can be used."""
    found = [*_names(policy, catalogue), *_limits(policy)]
    for name, plan in policy.plans.items():
        where = f"plans.{name}"
        found += _references(where, plan, policy, catalogue)
        found += _values(where, plan, policy, catalogue)
        found += _promises(where, plan, policy)
    if policy.start in policy.plans:
        found += _cycles(policy)
        reached = reachable(policy, policy.start)
        found += [
            Problem(f"plans.{name}", f"nothing leads from {policy.start!r} to this plan; use it or remove it")
            for name in policy.plans
            if name not in reached
        ]
    return tuple(found)


def reachable(policy: Policy, name: str) -> set[str]:
    """The plans that can be met from this one, itself included."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        at = waiting.pop()
        if at in policy.plans and at not in seen:
            seen.add(at)
            waiting += [to for _, to in references(policy.plans[at])]
    return seen


def _names(policy: Policy, catalogue: Catalogue) -> Iterator[Problem]:
    if not policy.plans:
        yield Problem("plans", "a policy needs at least one plan")
    if policy.start not in policy.plans:
        yield Problem("start", f"no plan is named {policy.start!r}", nearest=_nearest(policy.start, policy.plans))
    for name in policy.plans:
        if name in catalogue.tiers or name in catalogue.models:
            kind = "tier" if name in catalogue.tiers else "model"
            yield Problem(f"plans.{name}", f"a {kind} has this name too; a name means one thing")


def _limits(policy: Policy) -> Iterator[Problem]:
    if len(policy.plans) > MAX_PLANS:
        yield Problem("plans", f"{len(policy.plans)} plans; at most {MAX_PLANS}")
    if not 1 <= policy.attempts <= 10:
        yield Problem("attempts", f"{policy.attempts} is not between 1 and 10")
    if not 1 <= policy.calls <= 100:
        yield Problem("calls", f"{policy.calls} is not between 1 and 100")


def _references(where: str, plan: Plan, policy: Policy, catalogue: Catalogue) -> Iterator[Problem]:
    models_only = isinstance(plan, Use | Best)
    for key, name in references(plan):
        at = f"{where}.{key}"
        only = models_only or key.startswith("explore.")
        known = {*catalogue.tiers, *catalogue.models} | (set() if only else set(policy.plans))
        # A tier without models is no mistake of the policy: models come and go with keys and servers.
        if name in known:
            continue
        if only and name in policy.plans:
            yield Problem(at, f"{name!r} is a plan; here only models and tiers can stand")
        else:
            what = "model or tier" if only else "plan, tier or model"
            yield Problem(at, f"no {what} is named {name!r}", nearest=_nearest(name, known))


def _promises(where: str, plan: Plan, policy: Policy) -> Iterator[Problem]:
    """What was certified is a rung's own choice of models; behind another plan it would be something else."""
    if not isinstance(plan, Cascade):
        return
    for i, name in enumerate(plan.cascade[:-1]):
        if isinstance(policy.plans.get(name), Best):
            continue
        for reached in sorted(reachable(policy, name)):
            rung = policy.plans[reached]
            if isinstance(rung, Best) and rung.promise:
                what = f"the rung leads to {reached!r}, which keeps a promise; name {reached!r} itself as the rung"
                yield Problem(f"{where}.cascade[{i}]", what)


def _values(where: str, plan: Plan, policy: Policy, catalogue: Catalogue) -> Iterator[Problem]:
    match plan:
        case Use(use=names) if not names:
            yield Problem(f"{where}.use", "name at least one model or tier")
        case Best(best=names, floor=floor):
            if not names:
                yield Problem(f"{where}.best", "name at least one model or tier")
            yield from _share(f"{where}.floor", floor)
        case Keep(keep=screen):
            for key, names in (("allow", screen.allow), ("deny", screen.deny)):
                yield from _selectors(f"{where}.keep.{key}", names, catalogue)
            if screen.max_usd_per_mtok is not None and not screen.max_usd_per_mtok >= 0:
                yield Problem(f"{where}.keep.max_usd_per_mtok", "must be zero or more")
        case Rules(rules=rules):
            for i, rule in enumerate(rules):
                yield from _condition(f"{where}.rules[{i}].when", rule.when, policy, last=i == len(rules) - 1)
        case AskFirst(ask=question):
            if not 2 <= len(set(question.answers)) == len(question.answers) <= MAX_ANSWERS:
                yield Problem(f"{where}.ask.answers", f"give 2 to {MAX_ANSWERS} different answers")
            if not question.question.strip():
                yield Problem(f"{where}.ask.question", "the question is empty")
        case Cascade():
            yield from _cascade(where, plan)
        case Explore(explore=exploration):
            yield from _share(f"{where}.explore.rate", exploration.rate)
            if not exploration.among:
                yield Problem(f"{where}.explore.among", "name at least one model or tier")
            if not exploration.criticality:
                yield Problem(f"{where}.explore.criticality", "nothing would be explored; name user, internal or both")
            if exploration.grader and not exploration.shadow:
                yield Problem(
                    f"{where}.explore.grader", "has no effect without `shadow: true`: there is one reply only"
                )


def _cascade(where: str, plan: Cascade) -> Iterator[Problem]:
    accept = plan.accept
    if not 2 <= len(plan.cascade) <= MAX_RUNGS:
        yield Problem(f"{where}.cascade", f"{len(plan.cascade)} rungs; a cascade has 2 to {MAX_RUNGS}")
    if accept.confidence is None and accept.agreement is None and not accept.check and accept.grader is None:
        yield Problem(f"{where}.accept", "no test is given, so the first reply would always do: use `use` instead")
    if accept.agreement is not None and not 2 <= accept.agreement <= 5:
        yield Problem(f"{where}.accept.agreement", f"{accept.agreement} is not between 2 and 5")
    for key in ("confidence", "similarity", "at_least"):
        yield from _share(f"{where}.accept.{key}", getattr(accept, key))


def _condition(where: str, when: When, policy: Policy, *, last: bool) -> Iterator[Problem]:
    if when == When():
        what = "it has no condition" if last else "it has no condition, so no rule behind it is ever met"
        yield Problem(where, f"{what}; put its plan under `otherwise`")
    topics = {plan.ask.topic: plan.ask.answers for plan in policy.plans.values() if isinstance(plan, AskFirst)}
    for topic, answer in (when.told or {}).items():
        if topic not in topics:
            yield Problem(f"{where}.told.{topic}", "no `ask` plan has this topic", nearest=_nearest(topic, topics))
        elif answer not in topics[topic]:
            yield Problem(
                f"{where}.told.{topic}",
                f"{answer!r} is not an answer it can get",
                nearest=_nearest(answer, topics[topic]),
            )
    for key in ("min_complexity", "max_complexity"):
        yield from _share(f"{where}.{key}", getattr(when, key))
    for low, high in (
        ("min_input_tokens", "max_input_tokens"),
        ("min_turns", "max_turns"),
        ("min_complexity", "max_complexity"),
    ):
        least, most = getattr(when, low), getattr(when, high)
        if least is not None and most is not None and least > most:
            yield Problem(f"{where}.{low}", f"{least} is above {high} {most}, so this never holds")


def _selectors(where: str, names: tuple[str, ...], catalogue: Catalogue) -> Iterator[Problem]:
    known = {*catalogue.tiers, *catalogue.models, *catalogue.providers}
    for i, name in enumerate(names):
        if name not in known:
            yield Problem(
                f"{where}[{i}]", f"no model, tier or provider is named {name!r}", nearest=_nearest(name, known)
            )


def _share(where: str, value: float | None) -> Iterator[Problem]:
    if value is not None and not (math.isfinite(value) and 0 <= value <= 1):
        yield Problem(where, f"{value} is not between 0 and 1")


def _cycles(policy: Policy) -> Iterator[Problem]:
    """One problem for each plan that reaches itself, naming the way round."""
    for name in policy.plans:
        way = _way_round(policy, name)
        if way:
            yield Problem(f"plans.{name}", f"reaches itself: {' -> '.join(way)}")
            return  # every other plan on the way would tell the same


def _way_round(policy: Policy, name: str) -> list[str]:
    """The plans from `name` back to itself, or []. Breadth first, so the shortest way is told."""
    waiting = [[name]]
    seen: set[str] = set()
    while waiting:
        way = waiting.pop(0)
        for _, to in references(policy.plans[way[-1]]):
            if to == name:
                return [*way, name]
            if to in policy.plans and to not in seen:
                seen.add(to)
                waiting.append([*way, to])
    return []


def _nearest(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return close[0] if close else ""
