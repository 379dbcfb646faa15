"""The outcome format: its columns, and what a value of each may be. Nothing here reads a file.

NAME.prompts.EXT has a row for each prompt, NAME.outcomes.EXT one for each prompt and model, and NAME.labels.EXT, which
may be missing, one for each thing that was said of a reply. EXT is parquet, csv or jsonl.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["prompts", "outcomes", "labels"]
KINDS: tuple[Kind, ...] = ("prompts", "outcomes", "labels")


class Column(msgspec.Struct, frozen=True):
    """`low` and `high` bound a number. Text has neither."""

    name: str
    is_number: bool = False
    required: bool = False  # the column must be there, and no value empty
    low: float | None = None
    high: float | None = None
    above: bool = False  # `low` itself is too low
    what: str = ""  # would be right

    def bad(self) -> dict[str, str]:
        """What may be wrong with a value: the condition in SQL that finds it, and what would be right."""
        name = f'"{self.name}"'
        found = {f"is empty; {self.what or 'every row needs one'}": f"{name} IS NULL OR {name}::VARCHAR = ''"}
        if not self.required:
            found = {}
        if self.is_number:
            number = f"TRY_CAST({name} AS DOUBLE)"
            right = self.what or "a number"
            found[f"is not a number; right is {right}"] = f"{name} IS NOT NULL AND {number} IS NULL"
            found[f"is not finite; right is {right}, or nothing where it is not known"] = f"NOT isfinite({number})"
            outside = [f"{number} {'<=' if self.above else '<'} {self.low}"] if self.low is not None else []
            outside += [f"{number} > {self.high}"] if self.high is not None else []
            if outside:
                found[f"is out of range; right is {right}"] = f"isfinite({number}) AND ({' OR '.join(outside)})"
        return found


def _number(name: str, what: str, low: float = 0.0, high: float | None = None, above: bool = False) -> Column:
    return Column(name, is_number=True, low=low, high=high, above=above, what=what)


_ID = Column("prompt_id", required=True, what="every row names its prompt")
_MODEL = Column("model", required=True, what="every row names its model")
_WEIGHT = _number("weight", "a number above 0 (1 is a label beyond doubt)", high=1e6, above=True)
_AT_S = _number("at_s", "seconds since 1970", high=1e11)

COLUMNS: dict[Kind, tuple[Column, ...]] = {
    "prompts": (
        _ID,
        Column("prompt"),  # the text; a row without one needs `features`
        Column("source"),  # the workload where there is no column of that name
        Column("workload"),
        Column("features"),  # JSON, as the journal has them
        Column("tools_json"),  # of the request
        _AT_S,
    ),
    "outcomes": (
        _ID,
        _MODEL,
        _number("quality", "a number from 0 to 1", high=1.0),
        _WEIGHT,
        _number("cost_usd", "dollars, not below 0", high=1e9),
        _number("input_tokens", "a count, not below 0", high=1e12),
        _number("output_tokens", "a count, not below 0", high=1e12),
        _number("latency_s", "seconds, not below 0", high=1e9),
        Column("pred"),  # the reply's final answer
        Column("tools_json"),  # the calls that the reply makes
        _number("odds", "a chance above 0, at most 1", high=1.0, above=True),
        _AT_S,
    ),
    "labels": (
        _ID,
        _MODEL,
        Column("source", required=True, what="every label says who or what it comes from"),
        Column("key"),  # of the API key that gave it, where one did
        _number("score", "a number from 0 to 1", high=1.0),
        _WEIGHT,
        _AT_S,
    ),
}
# A table without these columns is none.
NEEDED: dict[Kind, tuple[str, ...]] = {
    "prompts": ("prompt_id",),
    "outcomes": ("prompt_id", "model", "quality"),
    "labels": ("prompt_id", "model", "source", "score"),
}
# Known, and of no use here: they are kept by whoever made the data, for people.
PASSED_OVER = ("subsource", "contaminated", "parsed", "response", "cost_kind", "__index_level_0__")


class PromptRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of prompts, as it is written."""

    prompt_id: str
    prompt: str | None = None
    workload: str | None = None
    features: str | None = None
    at_s: int | None = None


class OutcomeRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of outcomes, as it is written."""

    prompt_id: str
    model: str
    quality: float | None = None
    weight: float | None = None
    cost_usd: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    latency_s: float | None = None
    pred: str | None = None
    tools_json: str | None = None
    odds: float | None = None
    at_s: int | None = None


class LabelRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of labels, as it is written."""

    prompt_id: str
    model: str
    source: str
    key: str | None = None
    score: float
    weight: float
    at_s: int


ROWS: dict[Kind, type[msgspec.Struct]] = {"prompts": PromptRow, "outcomes": OutcomeRow, "labels": LabelRow}
