"""`python -m scripts.reliability`: plays the runs and writes their rows of docs/reliability.md. Loopback only.

Exit codes: 0 every bar is met and every mutant found, 1 not, 2 the command is wrong.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence

from scripts.reliability import report
from scripts.reliability.bars import Run, Scale


def runs() -> tuple[Run, ...]:
    from scripts.reliability import (
        agents,
        attacks,
        books,
        counts,
        crashes,
        disks,
        gateway,
        points,
        prices,
        readers,
        restarts,
        stops,
        streams,
        upgrades,
        upstreams,
    )

    rooms = (
        books,
        prices,
        gateway,
        streams,
        counts,
        readers,
        restarts,
        upstreams,
        agents,
        attacks,
        crashes,
        points,
        disks,
        stops,
        upgrades,
    )
    return tuple(run for room in rooms for run in room.RUNS)


def main() -> int:
    options = arguments()
    logging.disable(logging.ERROR)  # ledgers say a lot about disks that are made to fail
    scale = Scale(full=not options.fast, seed=options.seed)
    every = runs()
    chosen = [run for run in every if not options.only or run.name in options.only]
    if unknown := set(options.only or ()) - {run.name for run in every}:
        print(
            f"no such run: {', '.join(sorted(unknown))}; there are {', '.join(r.name for r in every)}", file=sys.stderr
        )
        return 2
    failed = []
    for run in chosen:
        print(f"{run.name}: {run.what}", file=sys.stderr, flush=True)
        row, good = play(run, scale)
        print(" | ".join(row), flush=True)
        if not good:
            failed.append(run.name)
        if not options.fast:
            report.write({run.name: row}, [each.name for each in every])
    if failed:
        print("not met: " + ", ".join(failed), file=sys.stderr)
    return 1 if failed else 0


def play(run: Run, scale: Scale) -> tuple[list[str], bool]:
    began = time.monotonic()
    found = run.play(scale)
    return report.row(run, scale, found, time.monotonic() - began), found.met and found.caught


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.reliability", description=__doc__)
    parser.add_argument("--only", type=lambda text: text.split(","), help="some of the runs, by name (all)")
    parser.add_argument("--fast", action="store_true", help="the small form that the tests play; writes nothing")
    parser.add_argument("--seed", type=int, default=1, help="where chance begins (1)")
    return parser.parse_args(given)


if __name__ == "__main__":
    raise SystemExit(main())
