"""Prompts that well-known software sends by itself, told by a few words of theirs. Data, and one function that looks.

A template says more about a request than its content does: a chat title needs no strong model whatever the chat was
about. Markers are short phrases without the numbers that versions change, looked for only when their rarest word is
there. Every entry was seen in public source code of the software named in the comment.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tierwise.core.request import Task
from tierwise.core.text import single_spaced


class Template(msgspec.Struct, frozen=True):
    """`marker` stands in the system prompt or the last message, casefolded, white space single; `trigger` is a word of
    it."""

    name: str
    task: Task
    trigger: str
    marker: str


TEMPLATES: tuple[Template, ...] = (
    # Open WebUI, and the many front ends that took its prompts over.
    Template("title", "summarisation", "title", "word title with an emoji summarizing"),
    Template("title", "summarisation", "title", "word title for the following conversation"),
    Template("title", "summarisation", "title", "generate a concise title"),
    Template("title", "summarisation", "title", "generate a short title"),
    Template("title", "summarisation", "title", "you are a title generator"),
    Template("title", "summarisation", "title", "title for this conversation"),
    Template("title", "summarisation", "title", "title for this chat"),
    Template("title", "summarisation", "title", "title for the conversation"),
    Template("tags", "classification", "tags", "broad tags categorizing the main themes"),
    Template("follow_ups", "creative", "questions", "relevant follow-up questions or prompts"),
    Template("follow_ups", "creative", "questions", "suggest follow-up questions"),
    Template("search_query", "extraction", "queries", "determine the necessity of generating search queries"),
    Template("search_query", "extraction", "queries", "generate search queries"),
    Template("autocompletion", "creative", "autocompletion", "you are an autocompletion system"),
    Template("autocompletion", "code", "completion", "code completion assistant"),
    Template("autocompletion", "code", "fim", "<|fim_prefix|>"),
    Template("image_prompt", "creative", "prompt", "detailed prompt for am image generation task"),
    # Coding agents: a new topic, the compaction of a long conversation.
    Template("topic", "classification", "topic", "analyze if this message indicates a new conversation topic"),
    Template("compaction", "summarisation", "summary", "create a detailed summary of the conversation so far"),
    Template("compaction", "summarisation", "summary", "detailed summary of our conversation so far"),
    Template("compaction", "summarisation", "checkpoint", "context checkpoint compaction"),
    Template("compaction", "summarisation", "summary", "provide a detailed but concise summary of our conversation"),
    # LangChain and LlamaIndex.
    Template("compaction", "summarisation", "summarize", "progressively summarize the lines of conversation"),
    Template("summary", "summarisation", "summary", "write a concise summary of the following"),
    Template("rephrase", "extraction", "standalone", "to be a standalone question"),
    Template("rephrase", "extraction", "standalone", "formulate a standalone question"),
    Template("rag", "other", "context", "following pieces of context to answer"),
    Template("rag", "other", "context", "following pieces of retrieved context to answer"),
    Template("rag", "other", "context", "context information is below"),
    Template("rag", "other", "context", "given the context information and not prior knowledge"),
    Template("rag", "other", "context", "answer the question based only on the following context"),
    Template("rag", "other", "context", "respond to the user query using the provided context"),
    Template("react", "tool_use", "tools", "answer the following questions as best you can. you have access to"),
    Template("react", "tool_use", "thought", "thought: you should always think about what to do"),
    Template("sql", "code", "sqlite", "given an input question, create a syntactically correct"),
    Template("sql", "code", "sql", "given an input question, create a syntactically correct"),
    Template("extraction", "extraction", "entities", "extract and save the relevant entities mentioned"),
    Template("extraction", "extraction", "extraction", "you are an expert extraction algorithm"),
    # Guard models and graders.
    Template("moderation", "moderation", "unsafe", "check if there is unsafe content in"),
    Template("moderation", "moderation", "moderation", "you are a content moderation"),
    Template("grading", "classification", "judge", "act as an impartial judge"),
    Template("grading", "classification", "grading", "you are grading"),
)

_BY_TRIGGER: dict[str, tuple[Template, ...]] = {
    trigger: tuple(each for each in TEMPLATES if each.trigger == trigger)
    for trigger in dict.fromkeys(each.trigger for each in TEMPLATES)
}

TRIGGERS = frozenset(_BY_TRIGGER)


def triggers(words: Iterable[str]) -> frozenset[str]:
    """Those of the words without which no template can be there."""
    return TRIGGERS.intersection(words)


def find(present: frozenset[str], *texts: str) -> Template | None:
    """The first known template, in the order of the table, whose marker is in one of the casefolded texts. `present`
    holds their triggers."""
    if not present:
        return None
    spaced = [single_spaced(text) for text in texts if text]
    candidates = [each for trigger in present for each in _BY_TRIGGER[trigger]]
    hits = [each for each in candidates if any(each.marker in text for text in spaced)]
    return min(hits, key=TEMPLATES.index) if hits else None
