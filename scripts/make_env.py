"""Makes a virtual environment from a hash-pinned requirements file, with Tierwise itself in it. Standard library only.

Doing it twice does nothing: a fingerprint of everything that went in is left behind, so a second `make run` needs no
network. Two at once wait for each other.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = "requirements/build.txt"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("env", help="folder of the environment, relative to the repository")
    parser.add_argument("requirements", help="requirements file, relative to the repository")
    options = parser.parse_args()
    env: Path = ROOT / options.env

    with (ROOT / f"{options.env}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = env / "ready"
        wanted = fingerprint(options.requirements)
        if not (stamp.is_file() and stamp.read_text() == wanted and runs(env)):
            try:
                build(env, options.requirements)
            except subprocess.CalledProcessError as failure:
                print(f"\nCould not make {options.env}: {advice(failure)}", file=sys.stderr)
                return 1
            stamp.write_text(wanted)
        else:
            stamp.touch()
    return 0


def fingerprint(requirements: str) -> str:
    """What the environment was made from. The path is in it because an environment cannot be moved."""
    digest = hashlib.sha256(f"{sys.version}\n{sys.platform}\n{ROOT}\n".encode())
    for name in (requirements, BUILD, "pyproject.toml", "scripts/make_env.py"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def runs(env: Path) -> bool:
    command = [str(env / "bin" / "python"), "-c", "import msgspec"]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def build(env: Path, requirements: str) -> None:
    (env / "ready").unlink(missing_ok=True)
    say(f"Making {env.name} with Python {sys.version.split()[0]} (once; a minute or two) ...")
    run([sys.executable, "-m", "venv", "--clear", str(env)])
    # PYTHONDONTWRITEBYTECODE would make every later start compile everything again.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH")}
    python = str(env / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "-qq"]
    run([*pip, "--require-hashes", "-r", requirements, "-r", BUILD], environment)
    # The build backend is the pinned one just installed, not one fetched unchecked into a build environment.
    run([*pip, "--no-deps", "--no-build-isolation", "--no-index", "--editable", "."], environment)
    run([python, "-m", "compileall", "-q", "src"], environment)
    say(f"{env.name} is ready.")


def run(command: list[str], environment: dict[str, str] | None = None) -> None:
    subprocess.run(command, check=True, cwd=ROOT, env=environment)


def advice(failure: subprocess.CalledProcessError) -> str:
    if "venv" in failure.cmd:
        return "this Python has no venv module; on Debian and Ubuntu: apt-get install python3-venv"
    if "--require-hashes" in failure.cmd:
        return "pip could not install the pinned packages (its message is above); is a package index reachable?"
    return f"`{' '.join(map(str, failure.cmd[1:4]))} ...` failed, its message is above"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
