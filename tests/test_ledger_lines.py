"""Thousands of keys have limits, and one more is made: what changes is looked at alone, and the result is as if all
had been made anew."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tierwise.core.budget import Budget
from tierwise.core.keys import budget_id, merged
from tierwise.core.request import Payer
from tierwise.stores.ledger.accounts import Line
from tierwise.stores.ledger.lines import Lines

MATCHES = ((), (("key", "k1"),), (("key", "k2"),), (("team", "red"),), (("tag", "x"), ("user", "ann")))
BUDGETS = st.builds(
    Budget,
    scope=st.sampled_from(("key", "user", "team", "session")),
    match=st.sampled_from(MATCHES),
    limit_nano=st.integers(1, 3),
    window=st.sampled_from(("day", "month")),
)
PAYERS = (
    Payer(),
    Payer(key="k1"),
    Payer(key="k2", user="ann", team="red"),
    Payer(key="k3", user="bob", team="blue", within=("k1",)),
)


def on_path(budget: Budget, payer: Payer) -> bool:
    """By the first condition on who pays, which is what lines are found by."""
    keys = (payer.key, *payer.within)
    conditions = [
        value in keys if name == "key" else value == getattr(payer, name, None) for name, value in budget.match
    ]
    return next((met for (name, _), met in zip(budget.match, conditions, strict=True) if name != "tag"), True)


@given(st.lists(st.lists(BUDGETS, max_size=9).map(tuple), min_size=1, max_size=6))
def test_after_a_change_all_lines_are_those_of_the_new_budgets(courses: list[tuple[Budget, ...]]) -> None:
    lines = Lines()
    for budgets in courses:
        before = {line.id: line for line in lines}
        for line, budget in lines.change(budgets, Line):
            line.change(budget)
        wanted = merged(budgets)
        assert [line.budget for line in lines] == list(wanted)
        for payer in PAYERS:
            found = [line.budget for line in lines.of(payer)]
            assert found == [budget for budget in wanted if on_path(budget, payer)]
        assert lines.by_id == {line.id: line for line in lines}
        assert all(line is before.get(line.id, line) for line in lines)  # a kept line keeps its accounts


def test_of_many_budgets_only_what_changed_is_looked_at() -> None:
    many = [Budget(scope="key", match=(("key", f"k{number}"),), limit_nano=5) for number in range(2_000)]
    lines = Lines(map(Line, many))
    made: list[str] = []

    def new(budget: Budget) -> Line:
        made.append(budget_id(budget))
        return Line(budget)

    assert lines.change((*many[:1_000], many[7], *many[1_000:]), new) == []  # named twice: one and the same
    assert not made
    dearer = Budget(scope="key", match=(("key", "k1500"),), limit_nano=6)
    one_more = Budget(scope="key", match=(("key", "z"),), limit_nano=5)
    kept = lines.change((*many[1:1_500], dearer, *many[1_501:], one_more), new)
    assert [(line.id, budget) for line, budget in kept] == [(budget_id(dearer), dearer)]
    assert made == [budget_id(one_more)]
    assert budget_id(many[0]) not in lines.by_id
    assert [line.id for line in lines.of(Payer(key="z"))] == [budget_id(one_more)]
