"""One cluster for all tests of a worker; what a test has left running ends with it."""

import pytest

from tests.slurm.cluster import Cluster, require_slurm


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    require_slurm()
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.stop()


@pytest.fixture(autouse=True)
def nothing_left(request):
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").cancel_all()
