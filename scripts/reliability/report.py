"""The table in docs/reliability.md. A run replaces its own rows, and each row says what it was measured at."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path

from scripts.reliability.bars import Found, Run, Scale

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- reliability: begin -->", "<!-- reliability: end -->"
HEAD = ("run", "codes", "what was done", "n", "figure", "bar", "", "mutant", "seconds", "measured")


def row(run: Run, scale: Scale, found: Found, seconds: float) -> list[str]:
    missed = "; ".join(str(check) for check in found.missed)
    met = "met" if found.met and found.caught else "mutant missed" if found.met else f"**not met** ({missed})"
    form = "full" if scale.full else "fast"
    measured = f"{commit()}, seed {scale.seed}, {form}, {time.strftime('%Y-%m-%d', time.gmtime())}"
    cells = [run.name, run.codes, run.what, found.n, found.figure, run.bar, met, found.mutant or "–"]
    return [cell.replace("|", "\\|").replace("\n", " ") for cell in [*cells, f"{seconds:,.1f}", measured]]


def write(rows: dict[str, list[str]], order: list[str]) -> None:
    """Rows of other runs stay as they are; the order is that of the runs."""
    page = PAGE.read_text()
    begin, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    known = {cells[0]: cells for cells in _cells(page[begin:end])} | rows
    listed = [known[name] for name in order if name in known]
    text = "\n".join([f"Machine of the last run: {machine()}.", "", *_table(listed)])
    PAGE.write_text(f"{page[:begin]}\n{text}\n{page[end:]}")


def _cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    found = [[cell.strip() for cell in line.replace("\\|", "\0").strip("|").split("|")] for line in lines[1:]]
    return [[cell.replace("\0", "\\|") for cell in cells] for cells in found]


def _table(rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD), *(f"| {' | '.join(cells)} |" for cells in rows)]


def machine() -> str:
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    return (
        f"{cores} shared cores ({names[0] if names else platform.machine()}), {platform.system()} "
        f"{platform.release().split('-')[0]}, CPython {platform.python_version()}, load average {load:.1f}"
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def commit() -> str:
    def git(*arguments: str) -> str:
        run = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        return run.stdout.strip()

    head = git("rev-parse", "--short", "HEAD") or "unknown"
    return f"{head}+" if git("status", "--porcelain", "src") else head
