"""One peer measured once, from cold start to memory after load; and the medians over rounds."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import load
from benchmarks.bodies import COUNT, body
from benchmarks.peers import Peer
from benchmarks.processes import Process, free_port

Say = Callable[[str], None]


@dataclass(frozen=True)
class Scenario:
    """A load. `share` is its part of the seconds that the caller gives to one load."""

    name: str
    kind: str
    connections: int
    share: float = 1.0


SCENARIOS = (
    Scenario("c1", "1k", 1),
    Scenario("c16", "1k", 16),
    Scenario("c64", "1k", 64),
    Scenario("large", "100k", 16, 0.7),
    Scenario("slow", "slow", 64, 0.7),
    Scenario("streams", "stream", 16),
)
PACED_STREAMS = 12


@dataclass(frozen=True)
class Round:
    """Figures of one peer in one round, and where requests landed. `trouble` is empty when all went well."""

    peer: str
    figures: dict[str, float]
    landed: dict[str, int]
    trouble: str = ""


def measure(peer: Peer, upstream: int, files: dict[str, Path], seconds: float, say: Say) -> Round:
    with tempfile.TemporaryDirectory(prefix="tierwise-bench-") as name:
        folder = Path(name)
        port = free_port() if peer.start else upstream
        process = peer.start(folder, port, upstream) if peer.start else None
        figures: dict[str, float] = {}
        landed: Counter[str] = Counter()
        try:
            if process:
                process.wait_for(port, peer.ready_path, peer.ready_limit_s)
                load.one(port, body("1k", peer.model, 0))
                figures["cold_start_s"] = time.perf_counter() - process.started_s
                time.sleep(1.0)  # what start-up left in flight settles before memory is read
                figures["rss_idle_mb"] = process.rss_mb()
            landed.update(landings(port, peer.model))
            load.apply(port, files["1k"], 16, 1)  # warm-up
            settle(process)
            for scenario in SCENARIOS:
                figures |= loaded(scenario, port, files[scenario.kind], seconds, process)
            figures |= paced(port, files["paced"])
            if process:
                figures["rss_loaded_mb"] = process.rss_mb()
        except (RuntimeError, OSError) as failure:
            say(f"  {peer.name}: {failure}")
            return Round(peer.name, figures, dict(landed), str(failure).splitlines()[0].rstrip(":"))
        finally:
            if process:
                process.stop()
        return Round(peer.name, figures, dict(landed))


def loaded(scenario: Scenario, port: int, bodies: Path, seconds: float, process: Process | None) -> dict[str, float]:
    name, lasts_s = scenario.name, seconds * scenario.share
    before_s = process.cpu_s() if process else 0.0
    seen = load.apply(port, bodies, scenario.connections, lasts_s)
    if not seen.requests and not seen.refused and not seen.broken:
        # Too slow to answer anything in that time, which is a figure and not a failure: it is given more.
        settle(process)
        before_s = process.cpu_s() if process else 0.0
        seen = load.apply(port, bodies, scenario.connections, max(8.0, lasts_s * 3))
    settle(process)
    spent_s = process.cpu_s() - before_s if process else 0.0
    if seen.refused or seen.broken or not seen.requests:
        what = f"{name}: {seen.requests} answered, {seen.refused} of them errors, {seen.broken} connections broke"
        raise RuntimeError(what + (f"\n{process.tail()}" if process else ""))
    figures = {f"{name}_per_s": seen.per_s, f"{name}_p50_us": seen.p50_us, f"{name}_p99_us": seen.p99_us}
    if process:
        # Those in flight when the load ended were worked on too; for a slow peer that is a good part of all.
        figures[f"{name}_cpu_us"] = spent_s / (seen.requests + scenario.connections) * 1e6
    return figures


def settle(process: Process | None, limit_s: float = 10.0) -> None:
    """Until a peer has worked off what the last load left behind, so that the next one does not pay for it."""
    deadline = time.perf_counter() + limit_s
    while process and time.perf_counter() < deadline:
        before_s = process.cpu_s()
        time.sleep(0.1)
        if process.cpu_s() - before_s < 0.02:
            return


def paced(port: int, bodies: Path) -> dict[str, float]:
    """First byte and end of streams whose upstream waits 50 ms and then sends an event every 2 ms."""
    firsts, totals = [], []
    for line in bodies.read_text().splitlines()[:PACED_STREAMS]:
        first_s, total_s, data = load.one(port, line)
        if data.count(b"chat.completion.chunk") < 24 or b"[DONE]" not in data:
            raise RuntimeError(f"a stream came back incomplete: {data[-200:]!r}")
        firsts.append(first_s * 1e6)
        totals.append(total_s * 1e6)
    return {"first_byte_us": statistics.median(firsts), "stream_total_us": statistics.median(totals)}


@dataclass(frozen=True)
class Soak:
    """Memory over a long load: the slope is that of the second half, when caches and pools have their size."""

    seconds: float
    requests: int
    first_mb: float
    last_mb: float
    mb_per_hour: float
    mb_per_million_requests: float


def soak(peer: Peer, upstream: int, bodies: Path, seconds: float, say: Say) -> Soak:
    """Sixteen requests in flight for that long, memory read between slices of five seconds."""
    assert peer.start
    with tempfile.TemporaryDirectory(prefix="tierwise-bench-") as name:
        port = free_port()
        process = peer.start(Path(name), port, upstream)
        try:
            process.wait_for(port, peer.ready_path, peer.ready_limit_s)
            began, answered = time.perf_counter(), 0
            seen: list[tuple[float, float, float]] = []  # seconds, requests so far, MB
            while (now_s := time.perf_counter() - began) < seconds or len(seen) < 4:
                done = load.apply(port, bodies, 16, 5)
                answered += done.requests
                seen.append((now_s, float(answered), process.rss_mb()))
                say(f"  {now_s:6.0f} s {answered:10,} requests {seen[-1][2]:8.1f} MB")
        finally:
            process.stop()
    times, counts, sizes = zip(*seen[len(seen) // 2 :], strict=True)
    per_s = statistics.linear_regression(times, sizes).slope
    per_request = statistics.linear_regression(counts, sizes).slope
    return Soak(seen[-1][0], answered, seen[0][2], seen[-1][2], per_s * 3600, per_request * 1e6)


def landings(port: int, model: str) -> Counter[str]:
    """The models that a handful of different prompts land on, to show that a decision is made and not skipped."""
    names: Counter[str] = Counter()
    for seed in range(0, COUNT, 4):
        _, _, data = load.one(port, body("1k", model, seed))
        head = data.partition(b"\r\n\r\n")[0].decode("latin-1").lower()
        names.update(
            line.partition(":")[2].strip() for line in head.splitlines() if line.startswith("x-tierwise-model:")
        )
    return names


def import_ms(python: str, statement: str, times: int = 7) -> float | None:
    """What one import statement adds to an empty interpreter, milliseconds (median); None where it fails."""

    def once(code: str) -> float | None:
        began = time.perf_counter()
        done = subprocess.run([python, "-c", code], check=False, capture_output=True, timeout=120)
        return (time.perf_counter() - began) * 1e3 if done.returncode == 0 else None

    if once(statement) is None:
        return None
    pairs = [(once("pass"), once(statement)) for _ in range(times)]
    whole = [(empty, full) for empty, full in pairs if empty is not None and full is not None]
    return statistics.median(full for _, full in whole) - statistics.median(empty for empty, _ in whole)


def imports(litellm_python: str | None) -> dict[str, float | None]:
    found = {
        "tierwise": import_ms(sys.executable, "import tierwise"),
        "openai": import_ms(sys.executable, "import openai"),
    }
    if litellm_python:
        found["litellm"] = import_ms(litellm_python, "import litellm", times=3)
    return found


def medians(rounds: list[Round]) -> dict[str, dict[str, float]]:
    """By peer and figure. A round with trouble counts with what it measured before."""
    return {
        peer: {name: statistics.median(values) for name, values in figures.items()}
        for peer, figures in gathered(rounds).items()
    }


def spreads(rounds: list[Round]) -> dict[str, dict[str, float]]:
    """Half the range over the rounds, as a share of the median."""
    return {
        peer: {
            name: (max(values) - min(values)) / 2 / statistics.median(values) if statistics.median(values) else 0.0
            for name, values in figures.items()
        }
        for peer, figures in gathered(rounds).items()
    }


def gathered(rounds: list[Round]) -> dict[str, dict[str, list[float]]]:
    by_peer: dict[str, dict[str, list[float]]] = {}
    for one in rounds:
        for name, value in one.figures.items():
            by_peer.setdefault(one.peer, {}).setdefault(name, []).append(value)
    return by_peer
