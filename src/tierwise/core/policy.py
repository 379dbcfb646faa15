"""A policy is named plans; a plan is data that `decide` reads. Seven kinds, told apart by their own key in the config.

A reference inside a plan is the name of a plan, a tier or a model; `use`, `best` and `explore.among` take models and
tiers only. What cannot be true of a policy is refused when it is loaded: see `check_policy`.
"""

from __future__ import annotations

import functools
from typing import Literal

import msgspec

from tierwise.core.request import Criticality, LatencyClass, Structure, Task

RUBRIC = "Does the reply answer the request fully and correctly?"


class When(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A condition. Every field that is given must hold; a list means any of them. Closed on purpose."""

    task: Task | tuple[Task, ...] | None = None
    keywords: tuple[str, ...] | None = None  # any of them is in the prompt, as whole words, whatever the case
    template: str | tuple[str, ...] | None = None
    language: str | tuple[str, ...] | None = None
    user: str | tuple[str, ...] | None = None
    team: str | tuple[str, ...] | None = None
    key: str | tuple[str, ...] | None = None
    session: bool | None = None  # the caller named one
    labels: dict[str, str] | None = None
    criticality: Criticality | None = None
    latency: LatencyClass | tuple[LatencyClass, ...] | None = None
    structured: Structure | None = None
    tools: bool | None = None
    images: bool | None = None
    code: bool | None = None
    math: bool | None = None
    min_input_tokens: int | None = None
    max_input_tokens: int | None = None
    min_turns: int | None = None
    max_turns: int | None = None
    min_complexity: float | None = None
    max_complexity: float | None = None
    min_constraints: int | None = None
    min_lambda: float | None = None
    max_left_usd: float | None = None  # some budget of the payer has at most this left
    min_step: int | None = None  # of the session or workflow, as the caller counts
    told: dict[str, str] | None = None  # topic of an `ask` plan -> its answer


class Rule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    when: When
    then: str


class Screen(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What may serve. `fits`: context, output ceiling, modality, tools, structure are within the model's means."""

    fits: bool = True
    allow: tuple[str, ...] = ()  # models, tiers or providers; () means all
    deny: tuple[str, ...] = ()
    local: bool = False  # only models on the owner's machines
    max_usd_per_mtok: float | None = None  # of input


class Question(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a small model is asked about the request. Its answer is one of `answers`, read strictly."""

    of: str  # plan, tier or model that answers
    topic: str
    question: str
    answers: tuple[str, ...]


class Accept(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """When a rung's reply is good enough. Every test that is given must pass. A test that cannot be made has failed."""

    confidence: float | None = None  # geometric mean of token probabilities is at least this
    agreement: int | None = None  # this many replies of different models agree
    similarity: float = 0.6  # of two texts, from which they count as agreeing
    check: tuple[Literal["schema", "tools", "complete", "nonempty"], ...] = ()
    grader: str | None = None  # plan, tier or model that grades
    at_least: float = 0.7  # the grade
    rubric: str = RUBRIC


class Exploration(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Another model now and then, with odds that are written down: what learning needs to see beyond its own choices.
    Requests marked `critical` are never explored."""

    rate: float  # share of requests
    among: tuple[str, ...]  # plans are not allowed here: models and tiers only
    criticality: tuple[Literal["user", "internal"], ...] = ("internal", "user")
    shadow: bool = False  # the usual plan answers; the other is asked as well, afterwards, for learning alone
    grader: str | None = None  # model or tier that then grades both replies, the delivered one and the shadow
    rubric: str = RUBRIC


class Use(msgspec.Struct, frozen=True, tag="use", omit_defaults=True, forbid_unknown_fields=True):
    """These models or tiers in this order; the next when one fails or cannot be paid."""

    use: tuple[str, ...]


class Best(msgspec.Struct, frozen=True, tag="best", omit_defaults=True, forbid_unknown_fields=True):
    """Of these, the one with the least price among those that pass the floor."""

    best: tuple[str, ...]
    floor: float = 0.0  # least expected quality
    promise: str | None = None


class Keep(msgspec.Struct, frozen=True, tag="keep", omit_defaults=True, forbid_unknown_fields=True):
    keep: Screen
    then: str


class Rules(msgspec.Struct, frozen=True, tag="rules", omit_defaults=True, forbid_unknown_fields=True):
    rules: tuple[Rule, ...]
    otherwise: str


class AskFirst(msgspec.Struct, frozen=True, tag="ask", omit_defaults=True, forbid_unknown_fields=True):
    ask: Question
    then: str


class Cascade(msgspec.Struct, frozen=True, tag="cascade", omit_defaults=True, forbid_unknown_fields=True):
    """Rung by rung until a reply is accepted; the last rung's reply is always accepted. `pass_up`: the next rung sees
    the rejected drafts."""

    cascade: tuple[str, ...]
    accept: Accept
    pass_up: bool = True


class Explore(msgspec.Struct, frozen=True, tag="explore", omit_defaults=True, forbid_unknown_fields=True):
    explore: Exploration
    then: str


Plan = Use | Best | Keep | Rules | AskFirst | Cascade | Explore
# The key that tells the kind of a plan in a configuration file.
PLAN_KEYS: dict[str, type[Plan]] = {
    "use": Use,
    "best": Best,
    "keep": Keep,
    "rules": Rules,
    "ask": AskFirst,
    "cascade": Cascade,
    "explore": Explore,
}


class Amounts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What `best` weighs quality and time with, in nano-dollars: an inadequate answer at each criticality, a second of
    waiting in each latency class. The presets are nothing but these.

    `caution` says how much an unsure estimate counts against a model: 0 takes its middle, 1 its low end."""

    miss_user_nano: int
    miss_internal_nano: int
    second_interactive_nano: int
    second_background_nano: int
    second_batch_nano: int
    caution: float = 0.1

    def miss_nano(self, criticality: Criticality) -> int:
        """What is critical is weighed as what people read; its mark keeps chance away from it."""
        return self.miss_internal_nano if criticality == "internal" else self.miss_user_nano

    def second_nano(self, latency: LatencyClass) -> int:
        match latency:
            case "interactive":
                return self.second_interactive_nano
            case "background":
                return self.second_background_nano
            case "batch":
                return self.second_batch_nano


# Reasoned, not measured: an inadequate answer costs its reader about a minute, and a minute of somebody's work is worth
# more than the five cents taken here. Then ten points of quality are worth half a cent, the price of some three hundred
# frontier tokens. economy and quality stand a factor of eight to each side. An answer that a program reads and checks
# costs less when it is bad, and nobody waits for a batch.
BALANCED = Amounts(
    miss_user_nano=50_000_000,
    miss_internal_nano=20_000_000,
    second_interactive_nano=100_000,
    second_background_nano=5_000,
    second_batch_nano=0,
)
PRESETS: dict[str, Amounts] = {
    "economy": Amounts(
        miss_user_nano=6_250_000,
        miss_internal_nano=2_500_000,
        second_interactive_nano=20_000,
        second_background_nano=1_000,
        second_batch_nano=0,
        caution=0.0,
    ),
    "balanced": BALANCED,
    "quality": Amounts(
        miss_user_nano=400_000_000,
        miss_internal_nano=160_000_000,
        second_interactive_nano=100_000,
        second_background_nano=5_000,
        second_batch_nano=0,
        caution=0.3,
    ),
}


class Policy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, dict=True):
    """Named plans, where to start, what quality and time are worth, and the limits of one request."""

    name: str
    start: str
    plans: dict[str, Plan]
    amounts: Amounts = BALANCED
    attempts: int = 3  # upstream calls that serve the request at a failure, over all models
    calls: int = 12  # upstream calls of one request of every kind: rungs, helpers, retries
    clamp: bool = False  # a caller's max_tokens may be lowered to what can be paid
    dearer: bool = True  # a fallback may cost more than what failed
    dear_rise: float = 0.1  # of a key's share of dear replies above what is usual for it; 1: as far as it likes

    @functools.cached_property
    def explorations(self) -> tuple[Exploration, ...]:
        """What some plan leaves to chance."""
        found = [plan.explore for plan in self.plans.values() if isinstance(plan, Explore)]
        return tuple(each for each in found if each.rate > 0)

    @functools.cached_property
    def has_shadows(self) -> bool:
        """Whether another model is asked as well now and then, beside the one that answers."""
        return any(each.shadow for each in self.explorations)


# Where a name stands that never answers the request itself.
HELPERS = ("ask.of", "accept.grader", "explore.grader")


def references(plan: Plan) -> tuple[tuple[str, str], ...]:
    """Every name that the plan refers to, with the key it stands under."""
    match plan:
        case Use(use=names):
            return tuple((f"use[{i}]", name) for i, name in enumerate(names))
        case Best(best=names):
            return tuple((f"best[{i}]", name) for i, name in enumerate(names))
        case Keep(then=then):
            return (("then", then),)
        case Rules(rules=rules, otherwise=otherwise):
            return (*((f"rules[{i}].then", rule.then) for i, rule in enumerate(rules)), ("otherwise", otherwise))
        case AskFirst(ask=question, then=then):
            return (("ask.of", question.of), ("then", then))
        case Cascade(cascade=names, accept=accept):
            grader = (("accept.grader", accept.grader),) if accept.grader else ()
            return (*((f"cascade[{i}]", name) for i, name in enumerate(names)), *grader)
        case Explore(explore=exploration, then=then):
            graders = (("explore.grader", exploration.grader),) if exploration.grader else ()
            among = ((f"explore.among[{i}]", name) for i, name in enumerate(exploration.among))
            return (*among, *graders, ("then", then))


def keywords(policy: Policy) -> tuple[str, ...]:
    """Every keyword that some rule asks for, folded: what the feature reader must look for."""
    found: dict[str, None] = {}
    for plan in policy.plans.values():
        if isinstance(plan, Rules):
            for rule in plan.rules:
                found.update((word.casefold(), None) for word in rule.when.keywords or ())
    return tuple(found)
