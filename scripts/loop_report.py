"""The tables and the plot of `simulate_loop`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

BEGIN, END = "<!-- figures: make simulate-loop -->", "<!-- end of figures -->"
Mean = tuple[float, float]  # with its standard error over seeds


class Figures(NamedTuple):
    """Of one arm. Regrets in dollars a thousand requests."""

    arm: str
    rounds: tuple[Mean, ...]
    before: Mean
    after: Mean
    worst: Mean
    quality: Mean
    spent: Mean


def table_text(found: Sequence[Figures], seeds: int) -> str:
    lines = [
        f"Regret in dollars a thousand requests, what exploration costs included; ± standard error over {seeds} seeds.",
        "",
        "| | regret, rounds 2–5 | regret, last ten rounds | the worst of these | quality | spent |",
        "|---|---|---|---|---|---|",
    ]
    for each in found:
        cells = [_shown(getattr(each, name)) for name in ("before", "after", "worst")]
        lines.append(f"| {each.arm} | {' | '.join(cells)} | {_shown(each.quality, 3)} | {_shown(each.spent)} |")
    return "\n".join(lines)


def renewed(page: str, text: str) -> str:
    """The page with the figures between its two marks replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def _shown(mean: Mean, digits: int = 2) -> str:
    return f"{mean[0]:.{digits}f} ± {mean[1]:.{digits}f}"


# ------------------------------------------------------------------------------------------------ the plot

WIDTH, HEIGHT, LEFT, TOP = 700, 260, 54, 42
LINES = (("#c2410c", ""), ("#8b5cf6", "6 4"), ("#9ca3af", "2 4"), ("#0d9488", ""))
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2937 }
  .paper { fill: #ffffff } .grid { stroke: #d1d5db }
  @media (prefers-color-scheme: dark) {
    text { fill: #e5e7eb } .paper { fill: #111827 } .grid { stroke: #374151 }
  }
"""


def svg(found: Sequence[Figures], change: int) -> str:
    """Regret by round, a line for each arm, without the pilot round."""
    rounds = len(found[0].rounds)
    top = max(mean for each in found for mean, _ in each.rounds[1:]) * 1.05
    high, wide = TOP + HEIGHT + 74, LEFT + WIDTH + 24

    def x(at: int) -> float:
        return LEFT + WIDTH * (at - 1) / (rounds - 2)

    def y(value: float) -> float:
        return TOP + HEIGHT * (1 - value / top)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" role="img">',
        "<title>Regret of a router that is fitted on its own decisions, round by round</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{wide}" height="{high}" rx="6"/>',
        f'<text x="{LEFT}" y="{TOP - 16}" font-weight="600">Regret, $ a thousand requests, by round</text>',
    ]
    for tick in range(int(top) + 1):
        out.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        out.append(f'<text x="{LEFT - 10}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>')
    out += [
        f'<text x="{x(at):.1f}" y="{TOP + HEIGHT + 20}" text-anchor="middle">{at + 1}</text>' for at in range(1, rounds)
    ]
    out.append(f'<text x="{x(change):.1f}" y="{TOP - 2}" text-anchor="middle">both models change</text>')
    for i, ((colour, dashes), each) in enumerate(zip(LINES, found, strict=False)):
        way = " ".join(f"{x(at):.1f},{y(each.rounds[at][0]):.1f}" for at in range(1, rounds))
        dash = f' stroke-dasharray="{dashes}"' if dashes else ""
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2.5"{dash} points="{way}"/>')
        left, bottom = LEFT + i * 170, high - 16
        out.append(f'<path d="M{left},{bottom - 5} h26" stroke="{colour}" stroke-width="2.5"{dash}/>')
        out.append(f'<text x="{left + 32}" y="{bottom}">{each.arm}</text>')
    return "\n".join([*out, "</svg>", ""])
