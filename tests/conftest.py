"""Fixtures that every package's tests share."""

import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# No deadline: other work may slow the machine down.
settings.register_profile("bevkd2", deadline=None)
settings.load_profile("bevkd2")

# Workers of pytest-xdist share the cores, so that each computes in one thread; so do the programs that they
# start, which inherit the variable. In the process that starts the workers it would be theirs too.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with a test that is marked slow first, where pytest-xdist hands out files in this order."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The directory with golden/ and real/, named by BEVKD2_SHARED."""
    root = os.environ.get("BEVKD2_SHARED")
    if not root:
        pytest.skip("BEVKD2_SHARED is not set: it names the directory that holds golden/ and real/")
    return Path(root)


@pytest.fixture(scope="session")
def fixture_world(tmp_path_factory: pytest.TempPathFactory):
    """A tiny nuScenes-layout world that tests share and do not change."""
    from tests.data.nuscenes_fixture import FixtureWorld

    return FixtureWorld(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def kitti_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a tiny KITTI-layout world that tests share and do not change."""
    from tests.data.kitti_fixture import write_kitti_world

    return write_kitti_world(tmp_path_factory.mktemp("kitti") / "world")


@pytest.fixture(scope="session")
def emulated():
    """torch.ops.bevkd2_emulated: the CUDA kernels on CPU tensors (tests/cuda_emulation/README.md)."""
    import bevkd2.ops  # noqa: F401  the tests compare with these
    from tests.cuda_emulation import build

    if build.compiler() is None:
        pytest.skip("no C++ compiler (c++ or g++) to build the CUDA emulation with")
    folder = build.ROOT / "build" / "cuda_emulation"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the first worker of pytest-xdist builds, the others wait
        library = build.build(folder)
    torch.ops.load_library(library)
    return torch.ops.bevkd2_emulated


@pytest.fixture(autouse=True)
def threads_are_as_before() -> Iterator[None]:
    """A test that computes in another number of threads restores it."""
    before = torch.get_num_threads()
    yield
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == before, f"torch computes in {after} threads after this test, in {before} before"


@pytest.fixture(autouse=True)
def handlers_restored() -> Iterator[None]:
    """Takes off the handlers that a run's log leaves on the root logger."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    for handler in [h for h in root.handlers if h not in before]:
        root.removeHandler(handler)
        handler.close()
