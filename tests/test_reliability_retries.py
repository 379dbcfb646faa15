"""The retry budget: whatever fails in whatever order, a provider is asked again for a fifth of the requests at most,
and yet a lone request on a quiet gateway is tried again."""

from __future__ import annotations

import itertools

from hypothesis import example, given
from hypothesis import strategies as st

from tierwise.routing.health import RETRY_RESERVE, Health

PER_REQUEST = 2  # retries: three attempts
LONG = 100  # requests: from so many on, the share holds
SHARE = 0.2


class Provider:
    """Asked through the health of a gateway. `calls`: 0 a first attempt, 1 a retry that was allowed."""

    def __init__(self, health: Health, name: str) -> None:
        self.health, self.name, self.calls = health, name, list[int]()

    def first(self) -> None:
        self.health.first(self.name)
        self.calls.append(0)

    def again(self) -> bool:
        allowed = self.health.take_retry(self.name)
        self.calls += [1] * allowed
        return allowed

    def most_over(self) -> float:
        """By how much the retries between any two moments with LONG requests or more are over their share."""
        firsts = list(itertools.accumulate((1 - call for call in self.calls), initial=0))
        # Of a stretch that ends here, the worst beginning is the one with the most room before it: both in one pass.
        over = [index - first - SHARE * first for index, first in enumerate(firsts)]
        worst, least, begin = float("-inf"), float("inf"), 0
        for end, first in enumerate(firsts):
            while firsts[begin] <= first - LONG:
                least, begin = min(least, over[begin]), begin + 1
            worst = max(worst, over[end] - least)
        return worst


# (provider, what happens, to how many requests, after how many seconds)
STORIES = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.sampled_from(["answered", "failed", "crowd", "late", "mixed"]),
        st.integers(1, 250),
        st.integers(0, 7_200),
    ),
    max_size=8,
)


def played(story: list[tuple[str, str, int, int]]) -> list[Provider]:
    now_s = 0.0
    health = Health(clock=lambda: now_s, dice=lambda: 0.5)
    providers = {name: Provider(health, name) for name in "ab"}
    waiting = 0
    for name, what, requests, seconds in story:
        provider, now_s = providers[name], now_s + seconds
        if what == "crowd":  # all at once, and then every one of them again
            for _ in range(requests):
                provider.first()
            waiting += PER_REQUEST * requests
        if what in ("crowd", "late"):  # those of an earlier crowd, whose answers took their time
            for _ in range(waiting):
                health.failed(name, "server", None, "")
                provider.again()
            waiting = 0
            continue
        for number in range(requests):
            provider.first()
            fails = what == "failed" or (what == "mixed" and number % 3 == 0)
            while fails and provider.again():
                health.failed(name, "server", None, "")
                fails = provider.calls[-PER_REQUEST:] != [1] * PER_REQUEST
            if not fails:
                health.answered(name)
    return list(providers.values())


@given(STORIES)
@example([("a", "answered", 250, 0), ("a", "failed", 100, 0)])  # a good day saves up no more than the reserve
@example([("a", "failed", 1, 3_600)] * 100)  # nor does time
@example([("a", "crowd", 250, 0), ("b", "crowd", 250, 0), ("a", "late", 1, 60), ("a", "failed", 250, 0)])
def test_among_any_hundred_requests_or_more_a_fifth_are_asked_again_at_most(
    story: list[tuple[str, str, int, int]],
) -> None:
    for provider in played(story):
        assert provider.most_over() <= 1e-9, (provider.name, sum(provider.calls), len(provider.calls))


def test_a_provider_that_fails_altogether_is_asked_one_and_a_tenth_times_in_the_long_run() -> None:
    provider = played([("a", "failed", 1_000, 0)])[0]
    assert 1_000 + 100 <= len(provider.calls) <= 1_000 + 100 + RETRY_RESERVE


def test_a_lone_request_on_a_quiet_gateway_is_tried_again() -> None:
    health = Health(clock=lambda: 0.0)
    for provider in ("a", "b"):  # each has a budget of its own
        lone = Provider(health, provider)
        lone.first()
        assert [lone.again() for _ in range(PER_REQUEST)] == [True] * PER_REQUEST


def test_all_that_a_blip_hits_at_once_are_tried_again_and_the_reserve_comes_back() -> None:
    provider = Provider(Health(clock=lambda: 0.0), "a")
    for _ in range(2):
        for _ in range(100):
            provider.first()
        assert [provider.again() for _ in range(RETRY_RESERVE + 1)] == [True] * RETRY_RESERVE + [False]
