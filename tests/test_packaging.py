"""What is promised about installing: pinned, hashed, no host names, one set of versions, one set of commands."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKED = ["run", "dev", "build"]


def entries(name: str) -> dict[str, list[tuple[Requirement, int]]]:
    """The pins of a requirements file by package, each with its number of hashes. Some are pinned once per Python."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text().replace("\\\n", " ")
    found: dict[str, list[tuple[Requirement, int]]] = {}
    for line in text.splitlines():
        pin, *hashes = re.split(r"\s+--hash=", line.strip())
        if pin:
            requirement = Requirement(pin)
            found.setdefault(canonicalize_name(requirement.name), []).append((requirement, len(hashes)))
    return found


@pytest.mark.parametrize("name", LOCKED)
def test_every_pin_is_exact_and_hashed(name: str) -> None:
    for package, pins in entries(name).items():
        for requirement, hashes in pins:
            assert [one.operator for one in requirement.specifier] == ["=="], package
            assert hashes > 0, package


@pytest.mark.parametrize("name", LOCKED)
def test_requirements_name_no_host_index_or_path(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert not re.search(r"://|^-|file:|[\s@]/|/", text, re.MULTILINE)


def test_every_dependency_is_pinned_within_its_range() -> None:
    for name, wanted in (("run", PROJECT["project"]["dependencies"]), ("dev", PROJECT["dependency-groups"]["dev"])):
        pinned = entries(name)
        for one in map(Requirement, wanted):
            pins = pinned[canonicalize_name(one.name)]
            assert all(one.specifier.contains(next(iter(pin.specifier)).version) for pin, _ in pins), one.name


def test_tests_run_with_the_versions_that_users_run_with() -> None:
    run, dev = entries("run"), entries("dev")
    for package, pins in run.items():
        assert {str(pin.specifier) for pin, _ in pins} <= {str(pin.specifier) for pin, _ in dev[package]}, package


def test_the_version_is_the_one_installed_and_the_one_the_changelog_tells_of() -> None:
    wanted = PROJECT["project"]["version"]
    assert f"\n## {wanted}\n" in (ROOT / "CHANGELOG.md").read_text()
    try:
        assert version("tierwise") == wanted
    except ModuleNotFoundError:
        pytest.skip("tierwise is not installed here, only on the path")


def test_contributing_says_what_every_dependency_is_for() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text()
    groups = (
        PROJECT["project"]["dependencies"],
        PROJECT["dependency-groups"]["dev"],
        PROJECT["build-system"]["requires"],
    )
    names = {Requirement(line).name for group in groups for line in group}
    assert not {name for name in names if not re.search(rf"\b{re.escape(name)}\b", table)}


def test_continuous_integration_runs_what_people_run() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "make check" in script
    assert "make test" in script
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_the_types_and_the_licence_are_shipped() -> None:
    assert (ROOT / "src" / "tierwise" / "py.typed").is_file()
    assert "Apache License" in (ROOT / PROJECT["project"]["license-files"][0]).read_text()


def test_an_old_python_gets_a_sentence_and_not_a_traceback(tmp_path: Path) -> None:
    """The first thing a stranger's machine may lack."""
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\ncase $1 in --version) echo Python 3.8.2;; *) exit 1;; esac\n")
    old.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": str(old)}
    done = subprocess.run(
        [str(ROOT / "scripts" / "find_python.sh")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "needs Python 3.11 or newer; found: Python 3.8.2" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_usable_python_is_found_by_name() -> None:
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}
    done = subprocess.run(
        [str(ROOT / "scripts" / "find_python.sh")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == sys.executable
