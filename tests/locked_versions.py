"""requirements.lock: the versions that README's commands install, for every Python that pyproject.toml admits.

`make lock` renews it by uv and notes what it was made from; `problems` finds out, without a network, where it no longer
fits pyproject.toml.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.markers import Environment, default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LOCK = "requirements.lock"
NOTE = "# Made from pyproject.toml with these requirements: "
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))


def problems(root: Path = ROOT) -> list[str]:
    """Where the lock does not fit pyproject.toml, a line each; empty where it does."""
    project, text = tomllib.loads((root / "pyproject.toml").read_text()), (root / LOCK).read_text()
    found = [] if NOTE + fingerprint(project) in text.splitlines() else ["the requirements of pyproject.toml changed"]
    pins = [Requirement(line) for line in text.splitlines() if line[:1].isalnum()]
    for environment in _environments(project):
        chosen = {_key(pin): pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)}
        for requirement in _requirements(project):
            if requirement.marker is None or requirement.marker.evaluate(environment):
                found += _misfit(requirement, chosen.get(_key(requirement)), environment["python_version"])
    return list(dict.fromkeys(found))


def fingerprint(project: Mapping[str, Any]) -> str:
    """Of everything that a resolver reads in pyproject.toml."""
    table = project["project"]
    read = [
        project["build-system"]["requires"],
        table["requires-python"],
        table["dependencies"],
        table["optional-dependencies"],
    ]
    return hashlib.sha256(json.dumps(read).encode()).hexdigest()


def renew(root: Path = ROOT) -> None:
    """Write the lock anew, with the newest versions that pyproject.toml admits; uv asks PyPI.

    Raises:
        CalledProcessError: uv finds no set of versions, or no network.
    """
    options = ("--universal", "--all-extras", "--python-version", PYTHONS[0], "--no-header")
    command = ["uv", "pip", "compile", "--quiet", *options, "pyproject.toml"]
    made = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    project = tomllib.loads((root / "pyproject.toml").read_text())
    head = "# The versions that README's commands install. Renew them with `make lock`; do not edit.\n"
    (root / LOCK).write_text(f"{head}{NOTE}{fingerprint(project)}\n{made}")


def _environments(project: Mapping[str, Any]) -> Iterator[Environment]:
    admitted = SpecifierSet(project["project"]["requires-python"])
    for python in (python for python in PYTHONS if python in admitted):
        for system, machine in PLATFORMS:
            here = default_environment()
            here.update(
                python_version=python,
                python_full_version=f"{python}.7",
                sys_platform=system,
                platform_system=system.capitalize(),
                platform_machine=machine,
            )
            yield here


def _requirements(project: Mapping[str, Any]) -> Iterator[Requirement]:
    table = project["project"]
    extras = [line for extra in table["optional-dependencies"].values() for line in extra]
    for line in (*project["build-system"]["requires"], *table["dependencies"], *extras):
        requirement = Requirement(line)
        if _key(requirement) != canonicalize_name(table["name"]):  # an extra of extras
            yield requirement


def _misfit(requirement: Requirement, pin: Requirement | None, python: str) -> list[str]:
    if pin is None:
        return [f"{requirement.name} is not in it for Python {python}"]
    (specifier,) = pin.specifier
    if Version(specifier.version) not in requirement.specifier:
        return [f"{pin.name} {specifier.version} is not {requirement.specifier}"]
    return []


def _key(requirement: Requirement) -> str:
    return canonicalize_name(requirement.name)


if __name__ == "__main__":
    renew()
