"""requirements.lock: the versions that README's commands install, for every Python that pyproject.toml admits.

`make lock` renews it by uv and notes what it was made from; `problems` finds out, without a network, where it no longer
fits pyproject.toml.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = "requirements.lock"
NOTE = "# Made from pyproject.toml with these requirements: "
PYTHONS = ("3.11", "3.12", "3.13")
READ = ("requires-python", "dependencies", "optional-dependencies")
PLATFORMS = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))


def problems(root: Path = ROOT) -> list[str]:
    """Where the lock does not fit pyproject.toml, a line each; empty where it does."""
    project, text = tomllib.loads((root / "pyproject.toml").read_text()), (root / LOCK).read_text()
    lines = [] if NOTE + fingerprint(project) in text.splitlines() else ["the requirements of pyproject.toml changed"]
    pins = [Requirement(line) for line in text.splitlines() if line[:1].isalnum()]
    admitted = SpecifierSet(project["project"]["requires-python"])
    for python, (system, machine) in itertools.product(filter(admitted.contains, PYTHONS), PLATFORMS):
        environment = {
            "python_version": python,
            "python_full_version": f"{python}.7",
            "sys_platform": system,
            "platform_system": system.capitalize(),
            "platform_machine": machine,
        }
        chosen = {_key(pin): pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)}
        for requirement in _requirements(project):
            if requirement.marker is not None and not requirement.marker.evaluate(environment):
                continue
            pin = chosen.get(_key(requirement))
            if pin is None:
                lines.append(f"{requirement.name} is not in it for Python {python}")
            elif (version := next(iter(pin.specifier)).version) not in requirement.specifier:
                lines.append(f"{pin.name} {version} is not {requirement.specifier}")
    return list(dict.fromkeys(lines))


def fingerprint(project: Mapping[str, Any]) -> str:
    """Of everything that a resolver reads in pyproject.toml."""
    table = project["project"]
    parts = project["build-system"]["requires"], *(table[name] for name in READ)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


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


def _requirements(project: Mapping[str, Any]) -> list[Requirement]:
    """All that pyproject.toml asks for, but for its extras of extras."""
    table = project["project"]
    extras = itertools.chain(*table["optional-dependencies"].values())
    texts = [*project["build-system"]["requires"], *table["dependencies"], *extras]
    return [one for one in map(Requirement, texts) if _key(one) != canonicalize_name(table["name"])]


def _key(requirement: Requirement) -> str:
    return canonicalize_name(requirement.name)


if __name__ == "__main__":
    renew()
