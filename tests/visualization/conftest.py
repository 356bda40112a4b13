from pathlib import Path

import pytest

from bevkd2.data.synthetic import WorldConfig, generate

CONFIGS = Path(__file__).parents[2] / "configs" / "demo"


@pytest.fixture(scope="session")
def world_options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a config that point to a world of two scenes of three frames."""
    root = tmp_path_factory.mktemp("pictures") / "world"
    config = WorldConfig(num_train_scenes=0, num_val_scenes=2, frames_per_scene=3, image_size=(96, 32))
    generate(config, root, progress=False)
    return [
        *(
            "DATASETS.ROOT",
            str(root),
            "DATASETS.VERSION",
            config.version,
            "DATASETS.TEST",
            "('synthetic_val',)",
        ),
        *("DATASETS.CACHE_DIR", str(root.parent / "cache"), "MODEL.DEVICE", "cpu"),
    ]


@pytest.fixture(scope="session")
def student_config_file() -> Path:
    return CONFIGS / "student.yaml"


@pytest.fixture(scope="session")
def teacher_config_file() -> Path:
    return CONFIGS / "teacher.yaml"
