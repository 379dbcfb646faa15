"""Outcome tables that were made up: easy and hard prompts in words, three models, and what each was worth and cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tierwise.core.features import extract
from tierwise.core.request import Prompt, Turn
from tierwise.study.table import Table, group_of, inputs_of

MODELS = ("acme/large", "acme/middle", "acme/small")
CHANCES = {"easy": (0.97, 0.94, 0.92), "hard": (0.85, 0.5, 0.2)}  # of a right answer
USD_A_TOKEN = (15e-6, 1.5e-6, 0.2e-6)
EASY = ("colour", "town", "river", "bread", "garden", "horse", "window", "summer")
HARD = ("integral", "theorem", "matrix", "prime", "topology", "eigenvalue", "lemma", "manifold")


def text_of(kind: str, i: int, dice: np.random.Generator) -> str:
    words = " ".join(dice.choice(EASY if kind == "easy" else HARD, 4).tolist())
    return f"What is the {words} number {i}?" if kind == "easy" else f"Prove step by step the {words} of case {i}."


def made(n: int, seed: int = 0, *, models: int = 3, tokens: bool = True, texts: bool = True) -> Table:
    """n prompts, about half of them hard; wrong answers mostly differ from each other, right ones are alike."""
    dice = np.random.default_rng(seed)
    kinds = [("easy", "hard")[int(each)] for each in dice.integers(0, 2, n)]
    prompts = [text_of(kind, i, dice) for i, kind in enumerate(kinds)]
    # The strong model and the cheapest ones, so that two models are the two ends.
    at = [0, 1, 2] if models == 3 else [0, 2]
    chances = np.array([CHANCES[kind] for kind in kinds])[:, at]
    quality = (dice.random(chances.shape) < chances).astype(np.float64)
    features = [extract(Prompt(turns=(Turn("user", each),), size_bytes=len(each)), with_grams=True) for each in prompts]
    written = dice.integers(20, 200, quality.shape).astype(np.float64)
    blank = np.full(quality.shape, np.nan)
    cost = written * np.array(USD_A_TOKEN)[at] if tokens else np.tile(100 * np.array(USD_A_TOKEN)[at], (n, 1))
    return Table(
        ids=tuple(f"p{i}" for i in range(n)),
        models=tuple(MODELS[i] for i in at),
        workloads=tuple(("letters", "proofs")[kind == "hard"] for kind in kinds),
        inputs=inputs_of(features),
        groups=np.array([group_of(each) for each in prompts], dtype=np.int64),
        quality=quality,
        weight=np.ones_like(quality),
        cost_usd=cost,
        output_tokens=written if tokens else blank,
        latency_ms=written * 10,
        answers=np.where(quality > 0, 0, dice.integers(1, 5, quality.shape)),
        odds=blank,
        at_s=np.zeros(n, np.int64),
        texts=tuple(prompts) if texts else (None,) * n,
        hash="5eed" * 4,
    )


def write(table: Table, folder: Path, name: str) -> Path:
    """As files in the outcome format: NAME.prompts.jsonl and NAME.outcomes.jsonl."""
    prompts = [
        {"prompt_id": id, "prompt": text, "source": workload}
        for id, text, workload in zip(table.ids, table.texts, table.workloads, strict=True)
    ]
    outcomes: list[dict[str, Any]] = [
        {
            "prompt_id": id,
            "model": model,
            "quality": float(table.quality[i, m]),
            "cost_usd": None if np.isnan(table.cost_usd[i, m]) else float(table.cost_usd[i, m]),
            "output_tokens": float(table.output_tokens[i, m]),
            "pred": f"answer {table.answers[i, m]}",
        }
        for i, id in enumerate(table.ids)
        for m, model in enumerate(table.models)
        if not np.isnan(table.quality[i, m])
    ]
    for kind, rows in (("prompts", prompts), ("outcomes", outcomes)):
        (folder / f"{name}.{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / f"{name}.prompts.jsonl"
