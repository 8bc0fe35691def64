"""What whole nights share: one Prefect server and one Dask cluster a session, which most tests hand to their nights.

Nights that start their own, as a user's do, are test_night_kills.py's, test_demo.py's and test_serve.py's.
"""

import contextlib

import pytest


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory):
    """The API of a running Prefect server."""
    from flows.prefect_server import PrefectServer

    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
            patch.delenv("PREFECT_API_URL", raising=False)
            server = stack.enter_context(PrefectServer())
        yield server.url()


@pytest.fixture(scope="session")
def dask_address():
    """The scheduler of two local workers."""
    from flows.cluster import pool

    with pool(2, device="cpu") as workers:
        yield workers.client.scheduler.address


@pytest.fixture(scope="module")
def with_prefect(prefect_url):
    """PREFECT_API_URL names a running server, which has time to answer on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", prefect_url)
        patch.setenv("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        patch.setattr("flows.prefect_server.GIVEN_PATIENCE", 300.0)
        yield


@pytest.fixture(scope="module")
def machinery(with_prefect, dask_address):
    """Address of a warm Dask cluster; PREFECT_API_URL names a running server."""
    return dask_address
