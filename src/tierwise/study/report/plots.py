"""Cost–quality curves as SVG, readable on light and on dark paper and without red and green."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from tierwise.study.judging.evaluate import Seeded
from tierwise.study.report.bench import SetResult

WIDTH, HEIGHT, LEFT, TOP, GAP = 560, 300, 60, 46, 84
POINTS = 60
IN_A_ROW = 4  # of the legend
LINES = {  # in the order they are drawn
    "oracle": ("#6b7280", "2 4"),
    "random": ("#9ca3af", "6 4"),
    "keywords": ("#8b5cf6", "6 4"),
    "zero": ("#c2410c", "6 4"),
    "agreement": ("#0284c7", ""),
    "router": ("#0d9488", ""),
    "with agreement": ("#ca8a04", ""),
}
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2937 }
  .paper { fill: #ffffff } .grid { stroke: #d1d5db }
  @media (prefers-color-scheme: dark) {
    text { fill: #e5e7eb } .paper { fill: #111827 } .grid { stroke: #374151 }
  }
"""


def svg(sets: Sequence[SetResult]) -> str:
    """One panel a set, below each other: quality against cost as a share of the best model's, means over the seeds."""
    sets = [each for each in sets if all(seed.curves for seed in each.evaluation.seeds)]  # without costs there are none
    high = TOP + len(sets) * (HEIGHT + GAP) + 30
    wide = LEFT + WIDTH + 24
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" role="img">',
        "<title>Quality against cost, for each way to route</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{wide}" height="{high}"/>',
    ]
    for i, each in enumerate(sets):
        out += _panel(each.name, each.evaluation.seeds, TOP + i * (HEIGHT + GAP))
    drawn = [name for name in LINES if any(name in seed.curves for each in sets for seed in each.evaluation.seeds)]
    for i, name in enumerate(drawn):
        x, y = LEFT + i % IN_A_ROW * WIDTH // IN_A_ROW, high - 36 + i // IN_A_ROW * 22
        out.append(_line(f"M{x},{y} h22", *LINES[name]))
        out.append(f'<text x="{x + 26}" y="{y + 4}">{name}</text>')
    return "\n".join([*out, "</svg>", ""])


def _panel(name: str, seeds: Sequence[Seeded], top: int) -> list[str]:
    """Of one set. What lies below the cheapest model is not drawn: the oracle's line would press all others flat."""
    low = min(seed.span.low_quality for seed in seeds if seed.span)
    high = max(float(seed.curves["oracle"].quality[-1]) for seed in seeds)
    low, high = np.floor(low * 20) / 20, min(1.0, np.ceil(high * 20) / 20)
    title = f"{escape(name)}: mean quality, by cost in % of the best model's"
    out = [f'<text x="{LEFT}" y="{top - 14}" font-weight="600">{title}</text>']
    for value in np.linspace(low, high, 5):
        y = top + HEIGHT * (high - value) / (high - low)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    for share in (0, 25, 50, 75, 100):
        x = LEFT + WIDTH * share / 100
        out.append(f'<text x="{x:.1f}" y="{top + HEIGHT + 20}" text-anchor="middle">{share}</text>')
    shares = np.linspace(0.0, 1.0, POINTS + 1)
    for line, (colour, dashes) in LINES.items():
        curves = [(seed.curves[line], seed.span.high_cost) for seed in seeds if line in seed.curves and seed.span]
        if len(curves) == len(seeds):
            values = np.mean([curve.at(shares * cost) for curve, cost in curves], axis=0)
            points = [
                f"{LEFT + WIDTH * share:.1f},{top + HEIGHT * (high - value) / (high - low):.1f}"
                for share, value in zip(shares, values, strict=True)
                if low <= value <= high
            ]
            if points:
                out.append(_line("M" + " L".join(points), colour, dashes))
    return out


def _line(path: str, colour: str, dashes: str) -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2.2"{dashed}/>'
