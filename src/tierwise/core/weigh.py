"""What each candidate is expected to cost, to be worth and to take: all in nano-dollars, under the price of money."""

from __future__ import annotations

import functools
import re

import msgspec

from tierwise.core.catalogue import Catalogue, Model, bare
from tierwise.core.episode import Episode, Range
from tierwise.core.estimate import estimate_all
from tierwise.core.money import TOKENS_PER_PRICE, Service, Usage, cost_nano
from tierwise.core.policy import Amounts
from tierwise.core.snapshot import Snapshot


class Weighed(msgspec.Struct, frozen=True, gc=False):
    """One model against one request. `cost_nano` is None for an unpriced model, which then weighs as the dearest."""

    model: Model
    quality: Range
    output_tokens: int
    cost_nano: int | None
    latency_ms: int
    price_nano: int


def weigh(snapshot: Snapshot, episode: Episode, models: tuple[Model, ...], amounts: Amounts) -> tuple[Weighed, ...]:
    """price = expected cost × λ + (1 − quality) × what a miss costs + expected seconds × what a second costs.

    The quality is the middle of its interval, less the caution's share of the way to its low end: of two models
    that are expected to be equally good, the one that we know better weighs less."""
    miss = amounts.miss_nano(episode.criticality)
    second = amounts.second_nano(episode.latency)
    factor, caution, features = episode.money.value, amounts.caution, episode.features
    found, read = [], features.input_tokens
    estimates = estimate_all(snapshot.estimator, features, models, episode.workload)
    for model, estimate in zip(models, estimates, strict=True):
        quality, tokens, latency = estimate.quality, estimate.output_tokens, estimate.latency_ms
        cost = expected_nano(model, episode, read, tokens)
        counted = cost if cost is not None else _dearest_nano(snapshot, episode, tokens)
        middle = quality.mid
        careful = middle - caution * (middle - quality.low)
        # Rounded to the nearest: a price weighs candidates and is never charged.
        price = round(counted * factor + (1.0 - careful) * miss + latency * second / 1_000)
        found.append(Weighed(model, quality, tokens, cost, latency, price))
    return tuple(found)


def expected_nano(model: Model, episode: Episode, input_tokens: int, output_tokens: int) -> int | None:
    """What the request is expected to cost on this model, for so many tokens; None when it is unpriced."""
    price = model.price
    if price is None:
        return None
    rates = price.only or price.rates(episode.at_s, input_tokens, episode.service)
    total = input_tokens * rates.input_tokens + output_tokens * rates.output_tokens
    return -(-total // TOKENS_PER_PRICE) + rates.request_nano


def worst_case_nano(model: Model, episode: Episode, ceiling: int, added_tokens: int = 0) -> int:
    """The money of `worst_case` alone."""
    return worst_case(model, episode, ceiling, added_tokens)[0]


def worst_case(model: Model, episode: Episode, ceiling: int, added_tokens: int = 0) -> tuple[int, int]:
    """(the most that one call can be billed, the most tokens that it can read and write): every byte a token, every
    token at its dearest reachable rate, every reply as long as the ceiling. `added_tokens`: what we put into the prompt
    ourselves. An unpriced model, which only a policy that allows it can reach, is billed 0."""
    price, features = model.price, episode.features
    bound = features.input_bound_tokens + added_tokens
    written = 0 if model.kind == "embedding" else (ceiling + features.reasoning_tokens) * features.n
    if price is None:
        return 0, bound + written
    rates = price.only or price.dearest(episode.at_s, bound, episode.service)
    read = rates.dearest_read
    if features.audio:
        read = max(read, rates.input_audio_tokens)
    total = bound * read + written * rates.dearest_written
    if features.searches:
        total += features.searches * rates.web_searches
    return -(-total // TOKENS_PER_PRICE) + rates.request_nano, bound + written


def is_bounded(model: Model, episode: Episode, worst_case_nano: int) -> bool:
    """Whether the worst case promises anything: not without a price, nor when the request names files whose length
    nobody knows, unless every token is free."""
    return model.price is not None and (worst_case_nano == 0 or not episode.features.references)


def ceiling_within(episode: Episode, tokens: int, added_tokens: int = 0) -> int:
    """The highest ceiling with which a call reads and writes no more than these tokens; below 1 when there is none."""
    features = episode.features
    return (tokens - features.input_bound_tokens - added_tokens) // features.n - features.reasoning_tokens


def affordable_tokens(model: Model, episode: Episode, amount_nano: int, added_tokens: int = 0) -> int:
    """The highest ceiling whose worst case is within the amount; below 1 when there is none."""
    if model.price is None or model.kind == "embedding":
        return 0
    least = worst_case_nano(model, episode, 0, added_tokens)
    unit = worst_case_nano(model, episode, 1_000_000, added_tokens) - least
    if unit <= 0:
        return model.max_output_tokens
    tokens = (amount_nano - least) * 1_000_000 // unit
    # The division above may be one rounding off either way; the law is that the worst case fits.
    while tokens > 0 and worst_case_nano(model, episode, tokens, added_tokens) > amount_nano:
        tokens -= 1
    return min(tokens, model.max_output_tokens)


def baseline_nano(snapshot: Snapshot, episode: Episode) -> int | None:
    """What the request is expected to cost on the baseline model."""
    model = snapshot.catalogue.baseline_for.get(episode.kind)
    if model is None:
        return None
    (found,) = estimate_all(snapshot.estimator, episode.features, (model,), episode.workload)
    return expected_nano(model, episode, episode.features.input_tokens, found.output_tokens)


# What stands before the end says nothing, and no name is as long. In a name without end the search for a version would
# not come back, and the cache would keep it.
NAME_LETTERS = 200


def billed_model(catalogue: Catalogue, routed: Model, served: str) -> Model:
    """Whose price a reply has: the model that the provider says it ran, when we know it. A dated or numbered version of
    the routed model is the routed model; a stranger, or one that we know without a price, is billed as the dearest that
    this provider has, never as a bargain."""
    name, own = bare(served[-NAME_LETTERS:]), bare(routed.name)
    if not name or name == own:
        return routed
    known = catalogue.by_name.get((routed.provider, name))
    if known is not None and known.price is not None:
        return known
    if known is None and (_unversioned(name) == own or _unversioned(own) == name):
        return routed
    return catalogue.dearest.get(routed.provider, routed)


# -2024-07-18, -20241022, -0613, @20240620, -v2, -preview, :free: what providers add to a name that means the same.
_VERSION = re.compile(r"(?:[-@:](?:\d{4}-\d{2}-\d{2}|\d{4,8}|\d{3}|v\d+|preview|latest|free|exp|fp8|instruct))+$")


@functools.lru_cache(maxsize=1024)  # what a provider calls a model is the same in each of its replies
def _unversioned(name: str) -> str:
    return _VERSION.sub("", name)


def charged_nano(model: Model, episode: Episode, usage: Usage, service: Service | None = None) -> int | None:
    """What this usage costs on this model at the time the episode began, at the class of service that it was served at,
    or else the one that was asked for; None when it is unpriced."""
    price = model.price
    if price is None:
        return None
    rates = price.only or price.rates(episode.at_s, usage.prompt_tokens, service or episode.service)
    return cost_nano(usage, rates)


def _dearest_nano(snapshot: Snapshot, episode: Episode, output_tokens: int) -> int:
    """An unpriced model weighs as much as the dearest of the catalogue: what is unknown is never a bargain."""
    read = episode.features.input_tokens
    known = (expected_nano(model, episode, read, output_tokens) for model in snapshot.catalogue.models.values())
    return max((cost for cost in known if cost is not None), default=0)
