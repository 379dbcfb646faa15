"""`python -m benchmarks`: measures Tierwise against its peers and writes docs/performance.md. Loopback only."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks import load, report
from benchmarks.bodies import bodies
from benchmarks.measure import Round, imports, measure, medians, soak, spreads
from benchmarks.peers import Peer, peers
from benchmarks.processes import Process, free_port

HERE = Path(__file__).parent
KINDS = ("1k", "100k", "slow", "stream", "paced")


def main() -> int:
    options = arguments()
    if not sys.platform.startswith("linux"):
        print("the benchmarks read /proc, which only Linux has", file=sys.stderr)
        return 2
    chosen = [
        peer for peer in peers() if not options.peers or peer.name.lower() in options.peers or peer.name == "direct"
    ]
    for peer in chosen:
        say(f"{peer.name}: " + (f"skipped, {peer.why_skipped}" if peer.why_skipped else peer.version))
    running = [peer for peer in chosen if not peer.why_skipped]

    with tempfile.TemporaryDirectory(prefix="tierwise-bench-") as name:
        folder = Path(name)
        command, mock = mock_command(folder)
        upstream = free_port()
        process = Process([*command, str(upstream)], folder / "mock.log")
        try:
            process.wait_for(upstream, "/v1/models", 10)
            if options.soak:
                return soaked(running, upstream, folder, options.soak)
            rounds = interleave(running, upstream, folder, options.rounds, options.seconds)
        finally:
            process.stop()

    found = report.Run(
        medians=medians(rounds),
        spreads=spreads(rounds),
        versions={peer.name: peer.version for peer in running},
        skipped={peer.name: peer.why_skipped for peer in chosen if peer.why_skipped},
        troubles=[f"{one.peer}: {one.trouble}" for one in rounds if one.trouble],
        landed={one.peer: one.landed for one in rounds if one.landed},
        imports=imports(litellm_python(running)),
        rounds=options.rounds,
        seconds=options.seconds,
        mock=mock,
        generator=load.generator(),
    )
    text = report.markdown(found)
    print(text)
    if options.json:
        Path(options.json).write_text(
            json.dumps({"run": asdict(found), "rounds": [asdict(one) for one in rounds]}, indent=1)
        )
    if not options.no_write:
        report.write_page(text)
        say(f"written to {report.PAGE.relative_to(report.ROOT)}")
    missed = report.missed(found.medians)
    if missed:
        say("gates not met: " + ", ".join(missed))
    return 1 if missed or found.troubles else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (3)")
    parser.add_argument("--seconds", type=float, default=4, help="seconds a load (4)")
    parser.add_argument(
        "--quick", action="store_true", help="one round of short loads, nothing written: does it work at all?"
    )
    parser.add_argument(
        "--peers", type=lambda text: text.lower().split(","), help="some of nginx,litellm,tierwise (all)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write every figure of every round")
    parser.add_argument("--no-write", action="store_true", help="leave docs/performance.md as it is")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="only this: Tierwise's memory under a long load")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.no_write = 1, 1.0, True
    options.rounds, options.seconds = min(max(options.rounds, 1), 20), min(max(options.seconds, 1.0), 60.0)
    return options


def soaked(running: list[Peer], upstream: int, folder: Path, seconds: float) -> int:
    for peer in running:
        if peer.name == "Tierwise":
            file = folder / "bodies"
            file.write_text("\n".join(bodies("1k", peer.model)) + "\n")
            found = soak(peer, upstream, file, min(seconds, 86_400), say)
            print(json.dumps(asdict(found), indent=1))
    return 0


def interleave(running: list[Peer], upstream: int, folder: Path, rounds: int, seconds: float) -> list[Round]:
    """Peers take turns, so that a slow minute of the machine hits all of them alike."""
    done = []
    for number in range(rounds):
        for peer in running:
            say(f"round {number + 1} of {rounds}: {peer.name}")
            files = {}
            for kind in KINDS:
                files[kind] = folder / f"{peer.model}.{kind}"
                files[kind].write_text("\n".join(bodies(kind, peer.model)) + "\n")
            done.append(measure(peer, upstream, files, seconds, say))
    return done


def mock_command(folder: Path) -> tuple[list[str], str]:
    """How to start the upstream, and what to call it in the report."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler:
        binary = folder / "mock"
        built = subprocess.run(
            [compiler, "-O2", "-o", str(binary), str(HERE / "mock.c")], check=False, capture_output=True, text=True
        )
        if built.returncode == 0:
            return [str(binary)], "mock.c"
        say(f"mock.c did not compile, the Python mock is used instead:\n{built.stderr[-500:]}")
    return [sys.executable, str(HERE / "mock.py")], "mock.py (slower than mock.c: absolute throughput is understated)"


def litellm_python(running: list[Peer]) -> str | None:
    binary = os.environ.get("LITELLM_BIN") or shutil.which("litellm")
    python = Path(binary).parent / "python" if binary else None
    return str(python) if python and python.exists() and any(peer.name == "LiteLLM" for peer in running) else None


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
