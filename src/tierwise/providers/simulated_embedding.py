"""The embeddings of the simulated provider: unit vectors by hashing words, so that like texts are near each other."""

from __future__ import annotations

import math
from array import array
from base64 import b64encode
from hashlib import blake2b
from typing import Any

import msgspec

from tierwise.core.catalogue import Model
from tierwise.providers.simulated_bodies import read_embedding, rejected, tokens_in

DEFAULT_DIMENSIONS = 256
MAX_INPUTS = 2_048


def embed(body: bytes, seed: int, *, model: Model, served: str, usage: bool) -> bytes:
    """Unit vectors by hashing words, so that texts with words in common are near each other.

    Raises UpstreamError, kind rejected, naming the field.
    """
    asked = read_embedding(body)
    dimensions = asked.dimensions or DEFAULT_DIMENSIONS
    texts = _inputs(asked.input)
    tokens = [len(text) if isinstance(text, list) else tokens_in(text) for text in texts]
    for i, count in enumerate(tokens):
        if not 0 < count <= model.context_tokens:
            raise rejected(f"Input {i} has {count} tokens; 1 to {model.context_tokens} are allowed.", "input")
    data = []
    for i, text in enumerate(texts):
        vector = _vector(text, dimensions, seed)
        shown = b64encode(vector.tobytes()).decode() if asked.encoding_format == "base64" else vector.tolist()
        data.append({"object": "embedding", "index": i, "embedding": shown})
    reply: dict[str, Any] = {"object": "list", "data": data, "model": served}
    if usage:
        reply["usage"] = {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}
    return msgspec.json.encode(reply)


def _inputs(given: str | list[str | int | list[int]]) -> list[str | list[int]]:
    if isinstance(given, str):
        return [given]
    numbers = [one for one in given if isinstance(one, int)]
    if len(numbers) == len(given) and numbers:
        return [numbers]
    if numbers or not 0 < len(given) <= MAX_INPUTS:
        raise rejected(f"'input' must be a text, tokens, or 1 to {MAX_INPUTS} of one of these.", "input")
    return [one for one in given if not isinstance(one, int)]


def _vector(text: str | list[int], dimensions: int, seed: int) -> array[float]:
    key = seed.to_bytes(8, "big", signed=True)
    words = [str(token) for token in text] if isinstance(text, list) else text.lower().split()
    vector = array("f", bytes(4 * dimensions))
    for word in words or [""]:
        digest = blake2b(word.strip(".,;:!?()\"'").encode(), key=key, digest_size=24).digest()
        for i in range(0, 24, 3):
            place = int.from_bytes(digest[i : i + 2], "big") % dimensions
            vector[place] += 1.0 if digest[i + 2] & 1 else -1.0
    length = math.sqrt(sum(value * value for value in vector))
    if length == 0:  # the words cancel out
        vector[0], length = 1.0, 1.0
    return array("f", (value / length for value in vector))
