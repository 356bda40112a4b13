from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bevkd2.checkpoint import load_file
from bevkd2.config import CfgNode, find_file, get_cfg, load_config, shipped
from bevkd2.config.shipped import refuse_address
from bevkd2.data import dataset_root
from bevkd2.data.nuscenes.index import cache_directory
from bevkd2.engine.run_folder import output_folder

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


@pytest.mark.parametrize("path", ["s3://bucket/x", Path("https://host/x.pth"), "gs://b"])
def test_addresses_are_refused(path: str | Path):
    with pytest.raises(
        ValueError, match=r"THE.KEY is '(s3|https|gs):/.*', an address; expected a path: .*mount"
    ):
        refuse_address(path, "THE.KEY")


@pytest.mark.parametrize("path", ["", "a/b", "/a", "~/a", "C:/a", "a b:/c", Path("x.pth"), "../s3:x"])
def test_paths_are_no_addresses(path: str | Path):
    refuse_address(path, "THE.KEY")


@pytest.mark.parametrize(
    ("key", "read"),
    [
        ("DATASETS.ROOT", lambda address: dataset_root(with_value("DATASETS.ROOT", address))),
        ("DATASETS.CACHE_DIR", lambda address: cache_directory(".", address)),
        ("OUTPUT_DIR", lambda address: output_folder(with_value("OUTPUT_DIR", address))),
        ("a checkpoint", lambda address: load_file(f"{address}/model.pth")),
    ],
)
def test_what_reads_a_path_names_it(key: str, read: Callable[[str], Any]):
    with pytest.raises(ValueError, match=rf"{key} is 's3:/.*', an address"):
        read("s3://bucket/place")


def with_value(key: str, value: str) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_list([key, value])
    return cfg
