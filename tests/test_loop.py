"""The short form of `make simulate-loop`: fitted on its own decisions alone, a router goes wrong; with shadows it does
not."""

from __future__ import annotations

import statistics

from scripts import simulate_loop as loop
from scripts.loop_report import renewed, svg, table_text


def test_a_loop_without_exploration_goes_wrong_and_with_shadows_it_does_not() -> None:
    plain, *_, shadow = loop.ARMS
    runs = {arm: [loop.run(arm, seed, rounds=8, per_round=240) for seed in (0, 1)] for arm in (plain, shadow)}

    def regret(arm: loop.Arm, first: int, last: int) -> float:
        return statistics.fmean(each.regret_usd for run in runs[arm] for each in run[first:last])

    assert regret(plain, 1, loop.CHANGE) < 1.0  # as long as the pilot is in the window, nothing is wrong
    assert regret(plain, 6, 8) > 1.5 * regret(shadow, 6, 8)  # the first round after the change is the same for all
    found = [loop.figures(arm, each) for arm, each in runs.items()]
    page = renewed("a<!-- figures: make simulate-loop --><!-- end of figures -->b", table_text(found, 2))
    assert "| shadow |" in page and page.startswith("a") and page.endswith("b")
    assert svg(found, 5).count("<polyline") == 2
