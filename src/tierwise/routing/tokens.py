"""Our own count of tokens, for replies whose provider does not say. Loaded when first needed, in a thread.

The ranks are OpenAI's `o200k_base`, shipped with the package (MIT, see data/NOTICE) because the library would download
them at first use. Other vendors' tokenizers differ by some per cent; a count of ours is always marked as estimated.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import threading
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tiktoken

_log = logging.getLogger("tierwise")
_RANKS_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
# Encoding is linear but a very long run of one character is slow in any byte-pair encoder, so it is done in pieces.
_PIECE = 20_000
_TAIL = 500  # characters at the end of a piece in which a gap between words is looked for
_GAP = re.compile(r"(?<=\S) (?=\S)")  # no token of o200k reaches over one
_MAKING = threading.Lock()


async def count(text: str) -> int:
    """The number of o200k tokens of this text. Off the event loop; the first call also reads the ranks."""
    if not text:
        return 0
    try:
        return await asyncio.to_thread(count_now, text)
    except RuntimeError:
        _log.exception("tokens could not be counted; four characters are taken for one")
        return len(text) // 4 + 1


def count_now(text: str) -> int:
    """The same, in the calling thread."""
    encoding = _encoding()
    total = start = 0
    while start < len(text):
        end = start + _PIECE
        end = last_gap(text, end) if end < len(text) else len(text)
        total += len(encoding.encode_ordinary(text[start:end]))
        start = end
    return total


def last_gap(text: str, end: int) -> int:
    """Where to cut a text that is counted in pieces, shortly before `end`: between words, where it changes no count.
    `end` itself where there is no gap, as in Chinese or Base64; a cut may add a token or two there."""
    start = max(0, end - _TAIL)
    places = [found.start() for found in _GAP.finditer(text, start, end)]
    return places[-1] if places and places[-1] > 0 else end


def _encoding() -> tiktoken.Encoding:
    with _MAKING:  # several threads may be the first; the ranks take some 90 MB each time they are read
        return _made()


@cache
def _made() -> tiktoken.Encoding:
    import base64

    import tiktoken

    data = (files("tierwise") / "data" / "o200k_base.tiktoken").read_bytes()
    if hashlib.sha256(data).hexdigest() != _RANKS_SHA256:
        raise RuntimeError("the token ranks of this installation are damaged; install tierwise again")
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in data.splitlines() if line)}
    # The split pattern of o200k_base, as published with the encoding.
    pattern = "|".join(
        [
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""\p{N}{1,3}""",
            r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""",
            r"""\s*[\r\n]+""",
            r"""\s+(?!\S)""",
            r"""\s+""",
        ]
    )
    return tiktoken.Encoding(name="o200k_base", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
