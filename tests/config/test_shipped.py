from pathlib import Path

import pytest

from bevkd2.config import find_file, load_config, shipped

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tests run in an empty folder, as the users of a wheel do."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_shipped_config_loads_from_another_folder():
    cfg = load_config("configs/demo/student.yaml")
    assert cfg == load_config(ROOT / "configs" / "demo" / "student.yaml")
    assert find_file("assets/demo_teacher.safetensors") == ROOT / "assets" / "demo_teacher.safetensors"


def test_a_file_of_the_users_own_takes_precedence(elsewhere: Path):
    own = elsewhere / "configs" / "demo" / "student.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("OUTPUT_DIR: my_own")
    assert load_config("configs/demo/student.yaml").OUTPUT_DIR == "my_own"


def test_a_config_elsewhere_names_shipped_ones(elsewhere: Path):
    own = elsewhere / "package" / "distill.yaml"
    own.parent.mkdir()
    teacher = "DISTILL: {TEACHER: {CONFIG: configs/demo/teacher.yaml}}"
    own.write_text(f"_BASE_: configs/demo/student.yaml\n{teacher}\nSEED: 5")
    cfg = load_config(own)
    assert cfg.SEED == 5 and cfg.MODEL.RESNETS.STEM_OUT_CHANNELS == 12
    assert Path(cfg.DISTILL.TEACHER.CONFIG) == ROOT / "configs" / "demo" / "teacher.yaml"
    beside = own.parent / "configs" / "demo" / "student.yaml"
    beside.parent.mkdir(parents=True)
    beside.write_text("OUTPUT_DIR: beside")
    assert load_config(own).OUTPUT_DIR == "beside"


@pytest.mark.parametrize("name", ["configs/no_such.yaml", "demo/student.yaml", "/configs/demo/student.yaml"])
def test_other_paths_are_left_alone(name: str):
    assert find_file(name) == Path(name)
    with pytest.raises(FileNotFoundError, match=name):
        load_config(name)


def test_a_wheel_carries_them_inside_the_package(elsewhere: Path, monkeypatch: pytest.MonkeyPatch):
    package = elsewhere / "site-packages" / "bevkd2"
    (package / "configs").mkdir(parents=True)
    (package.parent / "configs").mkdir()  # of some other package
    monkeypatch.setattr(shipped, "_PACKAGE", package)
    assert shipped.shipped_folder("configs") == package / "configs"
    with pytest.raises(FileNotFoundError, match=r"assets/ is neither in .* install bevkd2 again"):
        shipped.shipped_folder("assets")
