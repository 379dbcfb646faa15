"""Tables and a plot of simulated months (scripts/simulate_money.py), for docs/price-of-money.md."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence

import msgspec

BEGIN, END = "<!-- figures: make simulate-money -->", "<!-- end of figures -->"


class Outcome(msgspec.Struct):
    """Of one month. `spent_nano`, `came` and `served` are by day, the day of the request's arrival."""

    arm: str
    limit_nano: int | None = None  # of the whole month
    requests: int = 0
    answered: int = 0
    adequate: int = 0
    spent_nano: int = 0
    gone_on: float | None = None  # the day on which 98 % of the limit were spent; None: never
    prices: float = 0.0  # sum of λ over requests
    spent: list[int] = []
    came: list[int] = []
    served: list[int] = []


Month = dict[tuple[str, float], list[Outcome]]
TITLES = {
    "none": "Without a budget",
    "month": "A budget for the month: {share:.0%} of what routing without a budget would spend",
    "day": "The same money as a budget for each day: {share:.0%}",
}
COLUMNS: tuple[tuple[str, Callable[[Outcome], float], str], ...] = (
    ("answered, %", lambda month: 100 * month.answered / month.requests, ".1f"),
    ("adequate answers, % of requests", lambda month: 100 * month.adequate / month.requests, ".1f"),
    ("adequate, % of answers", lambda month: 100 * month.adequate / max(1, month.answered), ".1f"),
    ("spent, USD", lambda month: month.spent_nano / 1e9, ".2f"),
    ("spent, % of limit", lambda month: 100 * month.spent_nano / (month.limit_nano or month.spent_nano), ".1f"),
    ("mean λ", lambda month: month.prices / month.requests, ".1f"),
)


def months_text(months: Sequence[Month]) -> str:
    """Every table, in Markdown: means over the months and the standard error of each mean."""
    requests = statistics.mean(month[next(iter(month))][0].requests for month in months)
    said = [
        f"{len(months)} months (seeds 1 to {len(months)}) of {requests:,.0f} requests each. ± is the standard error."
    ]
    for window, share in months[0]:
        said += [
            f"### {TITLES[window].format(share=share)}",
            table([month[window, share] for month in months], whole=window == "month"),
        ]
    return "\n\n".join(said)


def table(rows: Sequence[Sequence[Outcome]], *, whole: bool) -> str:
    """One row for each way to spend; `rows` has the ways of each month in the same order. `whole`: one budget each."""
    limited = rows[0][0].limit_nano is not None
    columns = [each for each in COLUMNS if limited or "limit" not in each[0]]
    names = ["", *(name for name, _, _ in columns), *(["money gone on day"] if whole else [])]
    lines = [names, ["---", *("---:" for _ in names[1:])]]
    for ways in zip(*rows, strict=True):
        cells = [with_error([figure(each) for each in ways], form) for _, figure, form in columns]
        lines.append([ways[0].arm, *cells, *([gone(ways)] if whole else [])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_error(figures: Sequence[float], form: str) -> str:
    error = statistics.stdev(figures) / len(figures) ** 0.5 if len(figures) > 1 else 0.0
    return f"{statistics.mean(figures):{form}} ± {error:{form}}"


def gone(ways: Sequence[Outcome]) -> str:
    """The mean day on which 98 % were spent, and in how many months that never was."""
    days = [each.gone_on for each in ways if each.gone_on is not None]
    kept = len(ways) - len(days)
    return " ".join([*([with_error(days, ".1f")] if days else []), *([f"(never in {kept})"] if kept else [])])


def renewed(page: str, text: str) -> str:
    """The page with the figures between its two marks replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


# ------------------------------------------------------------------------------------------------ the plot

WIDTH, HEIGHT, LEFT, TOP, GAP = 760, 240, 54, 42, 70
LINES = ("#c2410c", "#8b5cf6", "#0d9488")  # told apart by those who see no red or green, and on light and on dark
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2937 }
  .paper { fill: #ffffff } .grid { stroke: #d1d5db } .plan { stroke: #6b7280; stroke-dasharray: 5 4 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e5e7eb } .paper { fill: #111827 } .grid { stroke: #374151 } .plan { stroke: #9ca3af }
  }
"""


def svg(months: Sequence[Outcome]) -> str:
    """Two panels over the days of one month: the share of the budget that is spent, and of the requests answered."""
    days = len(months[0].came)
    panel = (HEIGHT * 2 + TOP * 2 + GAP + 40, WIDTH + LEFT * 2)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {panel[1]} {panel[0]}" role="img">',
        "<title>One month under a budget: money spent, and requests answered, day by day</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{panel[1]}" height="{panel[0]}" rx="6"/>',
    ]
    spent = [
        [100 * part / (each.limit_nano or 1) for part in (0, *itertools.accumulate(each.spent))] for each in months
    ]
    served = [shares(each.served, each.came) for each in months]
    out += _axes(TOP, "Spent, % of the month's budget", days)
    out.append(f'<path class="plan" fill="none" stroke-width="1.5" d="{_path([0, 100], TOP, 1)}"/>')
    out += _axes(TOP + HEIGHT + GAP, "Answered, % of the day's requests", days)
    for colour, month, money, answers in zip(LINES, months, spent, served, strict=True):
        for top, values in ((TOP, money), (TOP + HEIGHT + GAP, answers)):
            drawn = _path(values, top, days)
            out.append(
                f'<path fill="none" stroke="{colour}" stroke-width="2.5" d="{drawn}"><title>{month.arm}</title></path>'
            )
    bottom = panel[0] - 14
    for i, (colour, month) in enumerate(zip(LINES, months, strict=True)):
        x = LEFT + i * 200
        out.append(
            f'<line x1="{x}" y1="{bottom - 5}" x2="{x + 26}" y2="{bottom - 5}" stroke="{colour}" stroke-width="3"/>'
        )
        out.append(f'<text x="{x + 34}" y="{bottom}">{month.arm}</text>')
    x = LEFT + len(months) * 200
    out.append(f'<line class="plan" x1="{x}" y1="{bottom - 5}" x2="{x + 26}" y2="{bottom - 5}" stroke-width="1.5"/>')
    out.append(f'<text x="{x + 34}" y="{bottom}">plan</text>')
    return "\n".join([*out, "</svg>", ""])


def shares(part: Sequence[int], whole: Sequence[int]) -> list[float]:
    """In per cent by day, beginning with the first day's twice, so that a line has a point for each end of a day."""
    found = [100 * some / max(1, every) for some, every in zip(part, whole, strict=True)]
    return [found[0], *found]


def _axes(top: int, title: str, days: int) -> list[str]:
    out = [f'<text x="{LEFT}" y="{top - 14}" font-weight="600">{title}</text>']
    for share in (0, 25, 50, 75, 100):
        y = top + HEIGHT * (1 - share / 100)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share}</text>')
    for day in range(0, days + 1, 5):
        x = LEFT + WIDTH * day / days
        out.append(
            f'<text x="{x:.1f}" y="{top + HEIGHT + 18}" text-anchor="middle">{"day " if not day else ""}{day}</text>'
        )
    return out


def _path(values: Sequence[float], top: int, days: int) -> str:
    """A line through one point for each end of a day; `values` has days + 1."""
    points = [
        f"{LEFT + WIDTH * i / days:.1f},{top + HEIGHT * (1 - min(value, 100) / 100):.1f}"
        for i, value in enumerate(values)
    ]
    return "M" + " L".join(points)
