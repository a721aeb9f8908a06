"""One cluster for all tests of a worker."""

import pytest

from tests.slurm.cluster import Cluster, require_slurm


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    require_slurm()
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.stop()
