"""Words and tables for what was measured: the terminal, docs/performance.md, and the gates of the plan."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import NOT_DURABLE

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"

Figures = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Run:
    """Everything one run found, ready to be told. `skipped` gives a reason by peer, `landed` models by peer."""

    medians: Figures
    spreads: Figures
    versions: dict[str, str]
    skipped: dict[str, str]
    troubles: list[str]
    landed: dict[str, dict[str, int]]
    imports: dict[str, float | None]
    rounds: int
    seconds: float
    mock: str
    generator: str


@dataclass(frozen=True)
class Gate:
    """One line of the table of gates. `read` gives the figure or None; `least` says whether more is better."""

    name: str
    read: Callable[[Figures], float | None]
    levels: tuple[float, float, float]
    unit: str
    least: bool = False


def of(figures: Figures, name: str, peer: str = "Tierwise") -> float | None:
    return figures.get(peer, {}).get(name)


def added(figures: Figures, name: str, peer: str = "Tierwise") -> float | None:
    """How much more than the direct call."""
    ours, direct = of(figures, name, peer), of(figures, name, "direct")
    return None if ours is None or direct is None else ours - direct


def ratio(figures: Figures, name: str) -> float | None:
    ours, theirs = of(figures, name), of(figures, name, "LiteLLM")
    return None if ours is None or not theirs else ours / theirs


# CPU per request of the bare stack on the quiet machine that the gates were written on. What it costs here, over this,
# is how much slower this machine and this hour are.
STACK_THERE_US = 108

GATES = (
    Gate("throughput at c=64, × LiteLLM", lambda f: ratio(f, "c64_per_s"), (20, 40, 73), "×", least=True),
    Gate("CPU per request (c=64)", lambda f: of(f, "c64_cpu_us"), (400, 200, 132), "µs"),
    Gate("added p50 at c=1, ledger in memory", lambda f: added(f, "c1_p50_us", NOT_DURABLE), (500, 250, 120), "µs"),
    Gate("added p99 at c=1, ledger in memory", lambda f: added(f, "c1_p99_us", NOT_DURABLE), (2000, 1000, 500), "µs"),
    Gate("streams per second at c=16", lambda f: of(f, "streams_per_s"), (640, 3000, 6000), "/s", least=True),
    Gate("RSS idle", lambda f: of(f, "rss_idle_mb"), (150, 90, 60), "MB"),
    Gate("RSS after load", lambda f: of(f, "rss_loaded_mb"), (200, 120, 80), "MB"),
    Gate("cold start to the first 200", lambda f: of(f, "cold_start_s"), (2, 1, 0.5), "s"),
)

COLUMNS = (
    ("req/s c=16", "c16_per_s", "{:,.0f}"),
    ("req/s c=64", "c64_per_s", "{:,.0f}"),
    ("CPU µs/req", "c64_cpu_us", "{:,.0f}"),
    ("req/s 100 kB", "large_per_s", "{:,.0f}"),
    ("CPU µs 100 kB", "large_cpu_us", "{:,.0f}"),
    ("streams/s c=16", "streams_per_s", "{:,.0f}"),
    ("CPU µs/stream", "streams_cpu_us", "{:,.0f}"),
    ("cold start s", "cold_start_s", "{:.2f}"),
    ("RSS idle MB", "rss_idle_mb", "{:.0f}"),
    ("RSS loaded MB", "rss_loaded_mb", "{:.0f}"),
)
ADDED = (
    ("added p50 µs", "c1_p50_us"),
    ("added p99 µs", "c1_p99_us"),
    ("added p50 µs, upstream 50 ms, c=64", "slow_p50_us"),
    ("added first byte µs (paced stream)", "first_byte_us"),
    ("added total µs (paced stream)", "stream_total_us"),
)


def gate_rows(figures: Figures) -> list[list[str]]:
    rows = []
    for gate in GATES:
        value = gate.read(figures)
        words = ("gate", "target", "moonshot")
        met = (
            []
            if value is None
            else [w for w, level in zip(words, gate.levels, strict=True) if reaches(gate, value, level)]
        )
        verdict = "not measured" if value is None else f"**{met[-1]} met**" if met else "**not met**"
        shown = "–" if value is None else f"{value:,.2f} {gate.unit}" if value < 10 else f"{value:,.0f} {gate.unit}"
        rows.append([gate.name, shown, *(f"{level:g}" for level in gate.levels), verdict])
    return rows


def reaches(gate: Gate, value: float, level: float) -> bool:
    return value >= level if gate.least else value <= level


def missed(figures: Figures) -> list[str]:
    """Gates that were measured and not met."""
    found = []
    for gate in GATES:
        value = gate.read(figures)
        if value is not None and not reaches(gate, value, gate.levels[0]):
            found.append(gate.name)
    return found


def markdown(run: Run) -> str:
    lines = [f"Measured {time.strftime('%Y-%m-%d')} at commit {commit()} on {machine()}.", ""]
    lines += [
        f"{run.rounds} interleaved rounds, {run.seconds:g} s a load, medians (± half the range over the rounds). "
        f"Load: {run.generator}. Upstream: {run.mock}. One worker each. "
        "Tierwise with features, decision, five budgets in the ledger, and journal on.",
        "",
    ]
    lines += ["### Against the gates", ""]
    lines += table(["", "measured", "gate", "target", "moonshot", ""], gate_rows(run.medians))
    lines += [*slower(run.medians), "", "### Against peers, 1 kB bodies unless said", ""]
    lines += table(["", *(title for title, _, _ in COLUMNS)], peer_rows(run))
    lines += ["", "### What a peer adds to the direct call", ""]
    lines += table(["", *(title for title, _ in ADDED)], added_rows(run))
    lines.append("")
    lines += [f"- {name}: {version}." for name, version in run.versions.items()]
    lines += [f"- {name}: skipped, {why}." for name, why in run.skipped.items()]
    for name, models in run.landed.items():
        lines.append(f"- {name} sent the sampled prompts to: {', '.join(f'{m} ({n})' for m, n in models.items())}.")
    known = {k: v for k, v in run.imports.items() if v is not None}
    if known:
        lines.append(
            "- Import time over an empty interpreter: " + ", ".join(f"`{k}` {v:.0f} ms" for k, v in known.items()) + "."
        )
    lines += [f"- Trouble: {trouble}." for trouble in run.troubles]
    lines.append(
        "- Not measured here: two workers (one process serves for now), and memory over hours (`--soak SECONDS`)."
    )
    return "\n".join(lines) + "\n"


def slower(figures: Figures) -> list[str]:
    """How the machine of this run compares with the one that the gates were written on."""
    stack = of(figures, "c64_cpu_us", "bare stack")
    own = of(figures, "c64_cpu_us")
    if not stack or not own:
        return []
    return [
        "",
        f"The bare stack (uvicorn and an aiohttp session, nothing of ours) costs {stack:,.0f} µs of CPU a request in "
        f"this run and {STACK_THERE_US} µs on the quiet machine that the gates were written on, a factor of "
        f"{stack / STACK_THERE_US:.2f}. It adds {added(figures, 'c1_p50_us', 'bare stack') or 0:,.0f} µs at p50 and "
        f"{added(figures, 'c1_p99_us', 'bare stack') or 0:,.0f} µs at p99. Tierwise costs {own / stack:.1f} times the "
        "bare stack.",
    ]


def peer_rows(run: Run) -> list[list[str]]:
    rows = []
    for peer, figures in run.medians.items():
        row = [peer]
        for _, name, form in COLUMNS:
            value = figures.get(name)
            spread = run.spreads.get(peer, {}).get(name, 0.0)
            shown = "–" if value is None else form.format(value)
            row.append(f"{shown} ±{spread:.0%}" if value is not None and run.rounds > 1 else shown)
        rows.append(row)
    return rows


def added_rows(run: Run) -> list[list[str]]:
    rows = []
    for peer in run.medians:
        if peer == "direct":
            row = [f"{run.medians[peer].get(name, 0):,.0f}" for _, name in ADDED]
            rows.append(["direct (itself)", *row])
            continue
        values = [added(run.medians, name, peer) for _, name in ADDED]
        rows.append([peer, *("–" if value is None else f"{value:,.0f}" for value in values)])
    return rows


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table, padded so that it also reads in a terminal."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return [line(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *(line(row) for row in rows)]


def machine() -> str:
    model = platform.processor() or platform.machine()
    try:
        names = [
            row.split(":", 1)[1].strip()
            for row in Path("/proc/cpuinfo").read_text().splitlines()
            if row.startswith("model name")
        ]
        model = names[0] if names else model
    except OSError:
        pass
    load = os.getloadavg()[0]
    return (
        f"{len(os.sched_getaffinity(0))} cores ({model}), {platform.system()} {platform.release().split('-')[0]}, "
        f"CPython {platform.python_version()}, load average {load:.1f} at the end of the run"
    )


def commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, check=False, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    short = git("rev-parse", "--short", "HEAD")
    # The page that this run rewrites does not make the code another.
    changed = [
        row
        for row in git("status", "--porcelain", "--untracked-files=no").splitlines()
        if "docs/performance.md" not in row
    ]
    return f"{short or '(none yet)'}{' with local changes' if short and changed else ''}"


def write_page(text: str, page: Path = PAGE) -> None:
    """Replaces what stands between the marks; a page without marks is begun anew."""
    old = page.read_text() if page.is_file() else ""
    if BEGIN not in old or END not in old:
        old = TEMPLATE
    head, rest = old.split(BEGIN, 1)
    page.parent.mkdir(exist_ok=True)
    page.write_text(f"{head}{BEGIN}\n{text}{END}{rest.split(END, 1)[1]}")


TEMPLATE = f"""# Performance

A model call takes from 300 ms to minutes, so what a gateway adds must vanish in it, and what it costs to run must
vanish in the bill. `make bench` measures that on your machine, against the direct call, nginx and LiteLLM where they
are installed (`LITELLM_BIN=/path/to/litellm make bench`), and rewrites the figures below. Timings are never asserted
in tests.

{BEGIN}
{END}

## How it is measured

- The **upstream** is a small C server (`benchmarks/mock.c`, compiled by the run; a Python one where there is no
  compiler): a JSON reply, a stream of 24 events with a write for each, and both after 50 ms. It costs some 10 µs a
  request, so the gateway is what is seen.
- The **load** is closed-loop: 1, 16 or 64 requests always in flight (wrk, or a client of ours where it is missing).
  64 different prompts of many kinds go round, so no peer answers from a memory of the last.
- **CPU per request** is user plus system time of the whole process tree, from `/proc`, over the requests answered. It
  moves least with whatever else the machine is doing, so it is the figure to watch.
- **Added** latency is a peer's percentile minus the direct call's in the same run. A *paced stream* waits 50 ms and
  then sends an event every 2 ms; in *streams per second* the upstream does not pause.
- **Cold start** runs from the start of the process to its first completion. Bytecode is compiled beforehand:
  with `PYTHONDONTWRITEBYTECODE` set, Python gateways start many times slower and comparisons flatter us.
- Peers take turns in every round, one at a time, each started anew; the tables quote medians.
- Gates, targets and moonshots are the project's own yardstick; the run ends with exit code 1 when a gate is missed.
"""
