"""What tests of several files are given."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.calls import secret
from tests.support.upstream import FakeUpstream
from tierwise.providers.http import HttpUpstream


@pytest.fixture
async def client() -> AsyncIterator[HttpUpstream]:
    """What calls providers."""
    made = HttpUpstream(secret)
    yield made
    await made.close()


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    """A provider."""
    async with FakeUpstream() as one:
        yield one
