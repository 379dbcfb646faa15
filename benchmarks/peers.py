"""Who is measured: the direct call, nginx as the limit of what a proxy can do, LiteLLM, Tierwise with everything on.

A peer that is not installed is named in the report as skipped, never left out in silence.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Process

KEY = "BENCH_UPSTREAM_KEY"


@dataclass(frozen=True)
class Peer:
    """One thing to measure. `start` gets (folder, own port, upstream port); None for the direct call."""

    name: str
    version: str
    model: str
    start: Callable[[Path, int, int], Process] | None = None
    ready_path: str = "/"
    ready_limit_s: float = 20
    why_skipped: str = ""


def peers() -> list[Peer]:
    return [direct(), nginx(), stack(), litellm(), tierwise(), tierwise(durable=False)]


def direct() -> Peer:
    return Peer("direct", "the upstream mock itself", "bench")


def nginx() -> Peer:
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/bin")
    if not binary:
        return Peer("nginx", "", "bench", why_skipped="nginx is not installed")
    version = _printed([binary, "-v"]).rsplit("/", 1)[-1]

    def start(folder: Path, port: int, upstream: int) -> Process:
        config = NGINX.format(
            folder=folder, port=port, upstream=upstream, user="user root;" if os.geteuid() == 0 else ""
        )
        (folder / "nginx.conf").write_text(config)
        command = [binary, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
        return Process(command, folder / "nginx.log")

    return Peer("nginx", version, "bench", start, "/v1/models")


def stack() -> Peer:
    def start(folder: Path, port: int, upstream: int) -> Process:
        command = [sys.executable, "-m", "benchmarks.stack", str(port), str(upstream)]
        return Process(command, folder / "stack.log", cwd=Path(__file__).parent.parent)

    return Peer("bare stack", "uvicorn and an aiohttp session, a proxy of 30 lines", "bench", start, "/v1/models")


NGINX = """
{user} daemon off; pid {folder}/nginx.pid; worker_processes 1;
events {{ worker_connections 1024; }}
http {{
  access_log off; tcp_nodelay on; keepalive_requests 1000000;
  client_body_buffer_size 1m; client_max_body_size 10m;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream mock {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""


def litellm() -> Peer:
    binary = os.environ.get("LITELLM_BIN") or shutil.which("litellm")
    if not binary or not Path(binary).is_file():
        return Peer("LiteLLM", "", "bench", why_skipped="litellm is not installed (LITELLM_BIN names one elsewhere)")
    python = Path(binary).parent / "python"
    version = _printed([str(python), "-c", "from importlib.metadata import version; print(version('litellm'))"])

    def start(folder: Path, port: int, upstream: int) -> Process:
        parameters = {
            "model": "openai/bench",
            "api_base": f"http://127.0.0.1:{upstream}/v1",
            "api_key": f"os.environ/{KEY}",
        }
        # JSON is YAML. No key, no database, no logging: the fastest it can be, and Tierwise runs without keys too.
        config = {
            "model_list": [{"model_name": "bench", "litellm_params": parameters}],
            "litellm_settings": {"telemetry": False, "set_verbose": False},
        }
        (folder / "litellm.yaml").write_text(json.dumps(config))
        command = [str(binary), "--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1", "--port", str(port)]
        env = {
            KEY: "bench",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        }
        return Process([*command, "--num_workers", "1"], folder / "litellm.log", env, cwd=folder)

    return Peer("LiteLLM", version, "bench", start, "/health/liveliness", ready_limit_s=120)


# The peer whose latency is held against the gates, which leave the disk out.
NOT_DURABLE = "Tierwise, ledger in memory"


def tierwise(*, durable: bool = True) -> Peer:
    version = _printed([sys.executable, "-c", "from importlib.metadata import version; print(version('tierwise'))"])
    program = "tierwise" if durable else "benchmarks.ledger_off"

    def start(folder: Path, port: int, upstream: int) -> Process:
        config = folder / "tierwise.yaml"
        config.write_text(TIERWISE.format(port=port, upstream=upstream, key=KEY))
        command = [sys.executable, "-m", program, "serve", "--config", str(config), "--port", str(port)]
        root = Path(__file__).parent.parent
        return Process([*command, "--state", str(folder / "state")], folder / "tierwise.log", {KEY: "bench"}, cwd=root)

    return Peer("Tierwise" if durable else NOT_DURABLE, version, "auto", start, "/readyz", ready_limit_s=30)


# Two tiers behind one mock, priced by their owner, the default policy, five budgets above every request: features,
# decision, holds and journal are on.
TIERWISE = """
server: {{host: 127.0.0.1, port: {port}}}
providers:
  acme: {{wire: openai, base_url: "http://127.0.0.1:{upstream}/v1", api_key: "env:{key}"}}
models:
  acme/small: {{tier: fast, context_tokens: 128000, price: {{input_usd_per_mtok: 0.05, output_usd_per_mtok: 0.20}}}}
  acme/large: {{tier: frontier, context_tokens: 200000, price: {{input_usd_per_mtok: 3, output_usd_per_mtok: 15}}}}
budgets:
  - {{scope: organisation, limit_usd: 1000000, window: month}}
  - {{scope: team, limit_usd: 500000, window: month}}
  - {{scope: user, limit_usd: 100000, window: day}}
  - {{scope: key, calls: 100000000, tokens: 1000000000000, window: hour}}
  - {{scope: session, limit_usd: 100000, steps: 1000000}}
"""


def _printed(command: list[str]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[-1].strip() if done.returncode == 0 and lines else "unknown version"
