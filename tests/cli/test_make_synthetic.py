import contextlib
import io
import json
import os
import subprocess
import sys

import pytest

from bevkd2.cli import make_synthetic
from bevkd2.cli.console import run_cli
from tests.limits import PROGRAM_SECONDS


@pytest.fixture(scope="module")
def tool():
    from bevkd2.cli import make_synthetic

    return make_synthetic


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world made as a user makes it."""
    root = tmp_path_factory.mktemp("tool") / "world"
    options = (
        "--train-scenes 1 --val-scenes 1 --seed 7 --difficulty hard --image-size 64x32 --frames 2 --workers 1"
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert make_synthetic.main(["--out", str(root), *options.split()]) == 0
    assert "synthetic_train, synthetic_val" in printed.getvalue()
    return root


def test_the_arguments_reach_the_configuration(world):
    config = json.loads((world / "synthetic.json").read_text())["config"]
    assert config["seed"] == 7
    assert config["image_size"] == [64, 32]
    assert config["hue_sigma"] == 0.12
    assert config["num_train_scenes"] == config["num_val_scenes"] == 1


def test_another_configuration_is_refused_with_a_remedy(world, tool, capsys):
    assert run_cli(tool.main, ["--out", str(world), "--train-scenes", "1", "--val-scenes", "1"]) == 1
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--frames", "1"], "frames_per_scene is 1"), (["--workers", "0"], "workers is 0")],
)
def test_a_value_out_of_range_is_named(arguments, message, tool, tmp_path, capsys):
    assert run_cli(tool.main, ["--out", str(tmp_path / "world"), *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and "(--traceback prints it)" in error
    assert not (tmp_path / "world").exists()


def test_a_world_in_kitti_layout(tool, tmp_path, capsys):
    root = tmp_path / "kitti"
    options = "--format kitti --train-frames 1 --val-frames 2 --image-size 104x32 --workers 1"
    assert tool.main(["--out", str(root), *options.split(), "--difficulty", "medium", "--seed", "5"]) == 0
    assert "KITTI layout, splits train, val" in capsys.readouterr().out
    marker = json.loads((root / "synthetic.json").read_text())
    assert marker["format"] == "kitti"
    assert marker["config"]["seed"] == 5
    assert marker["config"]["size_sigma"] == 0.05
    assert len(list((root / "training" / "image_2").glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("layout", "flag"), [("kitti", "--frames"), ("kitti", "--val-scenes"), ("nuscenes", "--val-frames")]
)
def test_an_option_of_the_other_format_is_refused(layout, flag, tool, tmp_path, capsys):
    assert run_cli(tool.main, ["--out", str(tmp_path / "world"), "--format", layout, flag, "3"]) == 1
    assert f"{flag} given with --format {layout}" in capsys.readouterr().err
    assert not (tmp_path / "world").exists()


@pytest.mark.parametrize("size", ["big", "176", "176x", "0x64", "-5x64"])
def test_a_bad_image_size_is_named(size, tool, tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool.main(["--out", str(tmp_path / "world"), f"--image-size={size}"])
    assert "expected WIDTHxHEIGHT" in capsys.readouterr().err


def test_a_plugin_brings_a_format_with_a_generator(tmp_path):
    """In a process of its own: a registered format stays for the rest of the process."""
    (tmp_path / "photo_world.py").write_text(
        "from bevkd2.data import DATA_FORMAT_REGISTRY\n"
        "from bevkd2.data.kitti import KittiFormat\n\n"
        "@DATA_FORMAT_REGISTRY.register()\n"
        "class PhotoWorld(KittiFormat):\n"
        "    name = 'photo_world'\n"
    )
    command = [sys.executable, "-m", "bevkd2.cli", "make-synthetic"]
    words = (
        f"--format photo_world --out {tmp_path / 'made'} --train-frames 1 --val-frames 1 --workers 1".split()
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    result = {}
    for imports in ([], ["--import", "photo_world"]):
        result[len(imports)] = subprocess.run(
            [*command, *words, *imports],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=PROGRAM_SECONDS,
        )
    assert result[0].returncode == 2, result[0].stderr
    assert "invalid choice: 'photo_world'" in result[0].stderr
    assert result[2].returncode == 0, result[2].stderr
    assert (tmp_path / "made" / "training" / "calib").is_dir()
