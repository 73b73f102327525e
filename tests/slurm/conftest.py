"""One cluster of each kind for all tests of this folder, made idle again after each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing_packages


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test in this folder is of the slurm tier; before -m chooses."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def _running() -> list[Cluster]:
    """The clusters that tests share, once they are started."""
    return []


def _started(running: list[Cluster], *, accounting: bool) -> Iterator[Cluster]:
    missing = missing_packages(accounting)
    if missing:
        pytest.skip(f"apt-get update && apt-get install -y --no-install-recommends {' '.join(missing)}")
    with Cluster(accounting=accounting) as cluster:
        running.append(cluster)
        yield cluster


@pytest.fixture(scope="session")
def cluster(_running: list[Cluster]) -> Iterator[Cluster]:
    """Two nodes and no accounting: sacct fails."""
    yield from _started(_running, accounting=False)


@pytest.fixture(scope="session")
def cluster_with_accounting(_running: list[Cluster]) -> Iterator[Cluster]:
    """Two nodes, slurmdbd and MariaDB: sacct works."""
    yield from _started(_running, accounting=True)


@pytest.fixture(autouse=True)
def _restored(_running: list[Cluster]) -> Iterator[None]:
    """After each test no cluster has a job, a dead daemon or a node out of service."""
    yield
    for cluster in _running:
        cluster.restore()
