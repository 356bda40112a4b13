from pathlib import Path

import pytest
from nuscenes import NuScenes

from bevkd2.data.synthetic import WorldConfig, generate

TINY = WorldConfig(
    seed=3,
    num_train_scenes=1,
    num_val_scenes=2,
    frames_per_scene=3,
    objects_per_scene=20,
    image_size=(176, 64),
)


@pytest.fixture(scope="session")
def tiny_config() -> WorldConfig:
    return TINY


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(TINY, tmp_path_factory.mktemp("world") / "tiny", progress=False)


@pytest.fixture(scope="session")
def nusc(tiny_world: Path) -> NuScenes:
    return NuScenes(TINY.version, str(tiny_world), verbose=False)
