"""What every test may rely on: no key, proxy, setting or ignored signal of whoever runs it, and no stopwatch on a
property."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before anybody imports NumPy: on processors that are shared its threads mostly wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Whoever starts the tests in the background may have them ignore Control-C (a shell without job control does), and what
# they start would inherit that; commands are interrupted here. Handlers, unlike ignored signals, end with an `exec`.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Timings are benchmarks, never assertions: a slow machine must not fail a law. TIERWISE_EXAMPLES=2000 looks harder.
settings.register_profile(
    "tierwise",
    deadline=None,
    max_examples=int(os.environ.get("TIERWISE_EXAMPLES", "100")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tierwise")

pytest_plugins = ("tests.support.fixtures",)  # loaded after this file, which NumPy must find done

FOREIGN_PREFIXES = ("TIERWISE_", "OLLAMA_", "VLLM_", "LM_STUDIO_", "LITELLM_")
FOREIGN_SUFFIXES = ("_API_KEY", "_API_BASE", "_BASE_URL", "_PROXY", "_proxy", "_AUTH_TOKEN")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's provider keys and proxies must neither be spent nor change what a test sees."""
    for name in list(os.environ):
        if name.startswith(FOREIGN_PREFIXES) or name.endswith(FOREIGN_SUFFIXES):
            monkeypatch.delenv(name)


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """A command in this process: (exit code, what it told, what it complained of)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIERWISE_LOCAL_URL", "off")

    from tierwise.cli import main as cli

    def run_it(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tierwise", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        told = capsys.readouterr()
        assert "Traceback" not in told.err + told.out
        return code, told.out, told.err

    return run_it
