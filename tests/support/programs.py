"""The router inside a program, for tests: over a fake upstream with two chat models and one for embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

import tierwise
from tests.support.gateway import ENVIRON, price
from tests.support.replies import openai_events
from tests.support.upstream import FakeUpstream

USER = [{"role": "user", "content": "Hello!"}]
FIRST = openai_events("pet")[:2]  # a role and a piece of text


def written(folder: Path, upstream: FakeUpstream, **more: Any) -> Path:
    model = {"tier": "fast", "price": price(1, 4), "context_tokens": 200_000, "max_output_tokens": 1_000}
    config = {
        "providers": {"pets": {"wire": "openai", "base_url": upstream.base_url, "api_key": "env:ONE_KEY"}},
        "models": {"pets/pet": model, "pets/pet2": model, "pets/vectors": {**model, "kind": "embedding"}},
        **more,
    }
    path = folder / "tierwise.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def opened(path: Path | None, **more: Any) -> tierwise.InApp:
    return tierwise.open(path, environ=ENVIRON, **more)


def clean(router: Any) -> None:
    """Nothing is left held or under way. For a router that has been closed."""
    assert router.in_flight == 0
    assert router.ledger.open_holds() == 0
    assert router.ledger.audit() == ()
