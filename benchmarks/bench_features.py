"""What reading a prompt and scoring five models costs, in microseconds. Run: `python benchmarks/bench_features.py`.

Medians and 99th percentiles of single calls, after a warm-up, with the garbage collector as it is in the server. The
last rows double the text again and again: from the cap on the time must stand still.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

from tierwise.core.catalogue import Model
from tierwise.core.estimate import BuiltIn, estimate_all
from tierwise.core.features import extract
from tierwise.core.request import Features, Prompt, Turn

MODELS = tuple(Model(id=f"acme/{i}", provider="acme", name=str(i), tier="fast", skill=0.3 + 0.1 * i) for i in range(5))
QUESTION = (
    "Our warehouse keeps 240 pallets of each of 12 products. Explain step by step how many trucks are needed if one "
    "takes 33 pallets, at least two must stay in reserve, and none may drive on Sunday. Compare two plans, please: one "
    "with our own drivers and one with a carrier. "
)
GERMAN = (
    "Erkläre bitte Schritt für Schritt, warum die Lieferung verspätet war, und vergleiche zwei Möglichkeiten, wie wir "
    "das künftig vermeiden können; dabei dürfen höchstens drei Fahrer gleichzeitig unterwegs sein. "
)
CHINESE = "请分析一下为什么上个月的交货延迟了，并比较两种不同的改进方案，说明各自的优点和缺点。"
CODE = "def take(items: list[int], limit: int) -> list[int]:\n    return [item for item in items if item < limit]\n\n"


def sized(piece: str, characters: int) -> str:
    return (piece * (characters // len(piece) + 1))[:characters]


def prompt(*texts: str) -> Prompt:
    turns = tuple(Turn("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts))
    return Prompt(turns=turns, size_bytes=60 + sum(30 + len(turn.text.encode()) for turn in turns))


def measure(run: Callable[[], object], calls: int) -> tuple[float, float]:
    """Median and 99th percentile in microseconds."""
    for _ in range(calls // 10 + 1):
        run()
    took: list[float] = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        run()
        took.append((time.perf_counter_ns() - start) / 1_000)
    took.sort()
    return statistics.median(took), took[int(len(took) * 0.99)]


def decide_like(asked: Prompt) -> Features:
    features = extract(asked)
    estimate_all(BuiltIn(), features, MODELS)
    return features


def main() -> None:
    cases = {
        "hi": prompt("hi"),
        "1 kB, English": prompt(sized(QUESTION, 1_000)),
        "500 tokens, English": prompt(sized(QUESTION, 2_250)),
        "1 kB, German": prompt(sized(GERMAN, 1_000)),
        "500 characters, Chinese": prompt(sized(CHINESE, 500)),
        "2 kB, code": prompt(sized(CODE, 2_000)),
        "20 turns of 500 characters": prompt(*([sized(QUESTION, 500)] * 20)),
        "100,000 short turns": prompt(*(["and then?"] * 100_000)),
        **{f"{kilo} kB": prompt(sized(QUESTION, kilo * 1_000)) for kilo in (2, 4, 8, 16, 32, 64, 1_000, 10_000)},
    }
    print(f"{'prompt':28}{'tokens':>10}{'extract p50':>13}{'p99':>9}{'with 5 models p50':>20}{'p99':>9}  µs")
    for name, asked in cases.items():
        calls = 100 if len(asked.turns) > 1_000 or asked.size_bytes > 1_000_000 else 3_000
        alone = measure(functools.partial(extract, asked), calls)
        both = measure(functools.partial(decide_like, asked), calls)
        tokens = extract(asked).input_tokens
        print(f"{name:28}{tokens:>10,}{alone[0]:>13.1f}{alone[1]:>9.1f}{both[0]:>20.1f}{both[1]:>9.1f}")
    features = extract(cases["500 tokens, English"])
    many = MODELS * 20
    each, _ = measure(lambda: estimate_all(BuiltIn(), features, many), 1_000)
    print(f"one estimate among {len(many)} models: {each / len(many):.2f} µs")


if __name__ == "__main__":
    main()
