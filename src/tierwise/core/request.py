"""What the caller asked, in the words that the rest of the house uses. Wire formats never come in here.

`Prompt` is the text, seen once by the feature reader and never stored. `Features` is all that a decision may know of
it, so replay and learning need no prompt and privacy is a property of the types.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from tierwise.core.money import Service

FEATURES_VERSION = 1

Wire = Literal["openai_chat", "anthropic", "openai_embeddings"]
LatencyClass = Literal["interactive", "background", "batch"]
Criticality = Literal["user", "internal", "critical"]
Task = Literal[
    "greeting",
    "extraction",
    "classification",
    "summarisation",
    "translation",
    "code",
    "reasoning",
    "creative",
    "moderation",
    "tool_use",
    "embedding",
    "other",
]
Structure = Literal["none", "json", "schema"]


class Turn(msgspec.Struct, frozen=True):
    """One message's text. Images, tool calls and the like are counted in `Prompt`, not spelled out here."""

    role: Literal["system", "user", "assistant", "tool"]
    text: str


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """What the feature reader may look at. Made by a codec, read once, never stored."""

    turns: tuple[Turn, ...]
    size_bytes: int  # of the whole body: no byte-level tokenizer makes more text tokens than this
    tools: tuple[str, ...] = ()  # names
    tool_calls: int = 0  # made so far in the conversation
    forced_tool: bool = False  # the reply must be a tool call
    images: int = 0
    audio: int = 0
    documents: int = 0
    references: int = 0  # files and media of any kind that the body only names, so that their size is unknown
    embedded_bytes: int = 0  # base64 of the above inside the body; never tokenised as text
    structured: Structure = "none"
    schema_hash: str = ""  # of the requested JSON schema
    max_tokens: int | None = None
    searches: int = 0  # that the provider may make for this request, and bill
    reasoning_tokens: int = 0  # the thinking budget asked for, where the API adds it to max_tokens; else 0
    n: int = 1
    replied: bool = False  # the model has spoken in this conversation before
    tail_hash: str = ""  # of the last calls of tools, or else the last reply, and of all that came after


class Features(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that `decide` may read of a prompt. Scores are 0..1."""

    version: int = FEATURES_VERSION
    input_tokens: int  # estimate
    input_bound_tokens: int  # no tokenizer makes more
    characters: int = 0
    turns: int = 0
    system_hash: str = ""
    template_hash: str = ""  # of the prompt's skeleton: system prompt, tool set, schema
    intent_hash: str = ""  # of the normalised last question: answers of helpers are cached by it
    template: str = ""  # name of a template that we know, "" when none
    tools: int = 0
    tool_calls: int = 0
    forced_tool: bool = False
    images: int = 0
    audio: int = 0
    documents: int = 0
    code: float = 0.0
    math: float = 0.0
    languages: tuple[str, ...] = ()
    depth: float = 0.0  # how many steps of thought the question seems to take
    constraints: int = 0
    wanted_tokens: int = 0  # of the length that the prompt asks for in words, 0 when it names none
    ambiguity: float = 0.0
    complexity: float = 0.0
    task: Task = "other"
    structured: Structure = "none"
    max_tokens: int | None = None
    searches: int = 0
    reasoning_tokens: int = 0
    n: int = 1
    references: int = 0  # to files of unknown length: what they cost has no bound
    replied: bool = False
    tail_hash: str = ""  # equal when an agent asks again after the same step with the same result
    grams: bytes = b""  # words and pairs of words, hashed (`core/grams`); empty unless the snapshot asks for them
    keywords: tuple[str, ...] = ()  # those of the policy's keywords that the prompt contains


class Hints(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the caller may say about the request; never who pays for it."""

    policy: str | None = None
    min_quality: float | None = None
    max_cost_nano: int | None = None
    max_latency_ms: int | None = None
    latency: LatencyClass | None = None
    criticality: Criticality | None = None
    task: Task | None = None
    session: str | None = None
    workflow: str | None = None
    step: int | None = None
    allow: tuple[str, ...] = ()  # models, tiers or providers
    deny: tuple[str, ...] = ()
    locality: Literal["local"] | None = None
    explore: bool = True
    dry_run: bool = False
    labels: tuple[tuple[str, str], ...] = ()  # workload tags: endpoint, tenant, whatever the owner's proxy adds


class Payer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who pays, known from the key alone."""

    key: str = ""
    user: str = ""
    team: str = ""
    organisation: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    within: tuple[str, ...] = ()  # the keys that made this key, one after the other: their limits cover it


# On the payer of whatever chance chose to ask, so that a budget of its own can bound it.
EXPLORATION = ("traffic", "exploration")


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request as a codec read it. `body` is what the caller sent, byte for byte."""

    wire: Wire
    body: bytes
    model: str  # as requested
    prompt: Prompt
    hints: Hints = Hints()
    stream: bool = False
    want_usage: bool = False  # a streaming client asked for the usage chunk
    service: Service = "standard"  # the class of service asked for, which has a price of its own
    betas: tuple[str, ...] = ()  # anthropic-beta values; passed on to a provider of the same wire only
