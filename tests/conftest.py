"""One thread, fixed seeds, no network, private caches; slow, gpu and integrations tests only on request."""

import os
import socket
import tempfile

_CACHES = tempfile.TemporaryDirectory(prefix="dcls_models_tests_", ignore_cleanup_errors=True)
for _name in ("TORCH_HOME", "HF_HOME"):  # read when torch and huggingface_hub are imported
    os.environ[_name] = os.path.join(_CACHES.name, _name.lower())  # noqa: PTH118
for _name in ("HF_HUB_CACHE", "HF_ASSETS_CACHE", "HF_XET_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH"):
    os.environ.pop(_name, None)  # each would win over HF_HOME
os.environ["HF_TOKEN"] = ""
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

import random  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    if config.getoption("-m"):
        return
    opt_in = [i for i in items if any(map(i.get_closest_marker, ("slow", "gpu", "integrations")))]
    config.hook.pytest_deselected(items=opt_in)
    items[:] = [item for item in items if item not in opt_in]


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Connections to anything but this machine fail, before a name is looked up."""

    def guarded(call: Any, host_of: Any) -> Any:
        def guard(*args: Any, **kwargs: Any) -> Any:
            host = host_of(*args)
            if isinstance(host, bytes):
                host = host.decode()
            if host and not str(host).startswith(LOOPBACK):
                raise OSError(f"tests must not use the network, tried to reach {host!r}")
            return call(*args, **kwargs)

        return guard

    def peer(sock: socket.socket, address: Any) -> Any:
        return address[0] if sock.family in (socket.AF_INET, socket.AF_INET6) else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect, peer))
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex, peer))
        patch.setattr(socket, "getaddrinfo", guarded(socket.getaddrinfo, lambda host, *_: host))
        yield
