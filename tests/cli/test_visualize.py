from pathlib import Path

import cv2
import pytest
import torch

import bevkd2.modeling  # noqa: F401  (registers the models)
import tests.engine.toys  # noqa: F401  (registers ToyDetector)
from bevkd2.config import load_config
from bevkd2.d2 import build_model
from bevkd2.data.kitti import load_kitti
from bevkd2.data.mono.format import choose_images
from bevkd2.data.synthetic import WorldConfig, generate
from tests.modeling.mono.pgd_model import small_cfg

REPOSITORY = Path(__file__).parents[2]
_PICTURES = ("detections", "attention", "temporal")
STUDENT, TEACHER = (REPOSITORY / "configs" / "demo" / f"{name}.yaml" for name in ("student", "teacher"))


@pytest.fixture(scope="module")
def tool():
    from bevkd2.cli import visualize

    return visualize


def draw(tool, words):
    return tool.draw(tool.build_parser().parse_args(words))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a small world and untrained weights."""
    folder = tmp_path_factory.mktemp("visualize")
    config = WorldConfig(num_train_scenes=0, num_val_scenes=2, frames_per_scene=2, image_size=(96, 32))
    generate(config, folder / "world", progress=False)
    for path in (STUDENT, TEACHER):
        model = build_model(load_config(str(path), ["MODEL.DEVICE", "cpu"]))
        torch.save({"model": model.state_dict()}, folder / f"{path.stem}.pth")
    return folder


def arguments(work, output, *extra):
    options = [
        "DATASETS.ROOT",
        str(work / "world"),
        "DATASETS.CACHE_DIR",
        str(work / "cache"),
        "MODEL.DEVICE",
        "cpu",
    ]
    return ["--config-file", str(STUDENT), "--output", str(output), *extra, *options]


def test_pictures_of_two_models_are_written(tool, work, tmp_path):
    other = f"teacher={TEACHER}:{work / 'teacher.pth'}"
    extra = [
        "--weights",
        str(work / "student.pth"),
        "--name",
        "student",
        "--compare-weights",
        other,
        "--num",
        "2",
    ]
    written = draw(tool, arguments(work, tmp_path / "pictures", *extra))
    assert sorted(p.name for p in written) == sorted(
        f"{frame:05d}_{kind}.png"
        for frame in (1, 3)
        for kind in (
            *(f"{picture}_{name}" for picture in _PICTURES for name in ("student", "teacher")),
            "bev_response",
            "features",
        )
    )
    for path in written:
        image = cv2.imread(str(path))
        assert image.shape[0] > 300
        assert image.std() > 10


@pytest.mark.parametrize("text", ["teacher", "=file.pth", "teacher=", "model=x.pth"])
def test_a_comparison_that_is_not_understood_is_an_error(text, tool, work, tmp_path):
    extra = ["--weights", str(work / "student.pth"), "--compare-weights", text]
    with pytest.raises(ValueError, match="--compare-weights"):
        draw(tool, arguments(work, tmp_path, *extra))


def test_missing_weights_say_how_to_name_them(tool, work, tmp_path):
    with pytest.raises(ValueError, match="add --weights FILE"):
        draw(tool, arguments(work, tmp_path))


@pytest.mark.parametrize("flag", ["--resume", "--eval-only", "--num-gpus=2"])
def test_flags_of_a_training_are_refused(flag, tool, work, tmp_path, capsys):
    with pytest.raises(SystemExit):
        draw(tool, arguments(work, tmp_path, flag))
    assert f"unrecognized arguments: {flag}" in capsys.readouterr().err


def test_num_below_one_is_an_error(tool, work, tmp_path):
    with pytest.raises(ValueError, match="--num is 0"):
        draw(tool, arguments(work, tmp_path, "--num", "0"))


@pytest.fixture(scope="module")
def mono(kitti_world, tmp_path_factory):
    """The command line of a small monocular model with untrained weights."""
    folder = tmp_path_factory.mktemp("mono")
    cfg = small_cfg()
    cfg.DATASETS.ROOT, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = str(kitti_world), ("train",), ("val",)
    cfg.DATALOADER.NUM_WORKERS = 0
    (folder / "model.yaml").write_text(cfg.dump())
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model.pth")
    weights = str(folder / "model.pth")
    return [
        "--config-file",
        str(folder / "model.yaml"),
        "--weights",
        weights,
        "--output",
        str(folder / "out"),
    ]


def test_pictures_of_monocular_models_are_written(tool, mono):
    weights = mono[3]
    written = draw(tool, [*mono, "--compare-weights", f"other={weights}", "--image-id", "000006"])
    kinds = ("detections_model", "detections_other", "features", "perspective")
    assert sorted(p.name for p in written) == sorted(f"000006_{kind}.png" for kind in kinds)
    for path in written:
        assert cv2.imread(str(path)).std() > 10


def test_without_names_images_are_spread_over_the_split(kitti_world):
    index = load_kitti(kitti_world, "train", ("Car",))
    assert choose_images(index, [], 1) == [0]
    assert choose_images(index, [], 3) == [0, 2, 4]
    assert choose_images(index, [], 99) == [0, 1, 2, 3, 4]


def test_named_images_are_found(kitti_world):
    index = load_kitti(kitti_world, "val", ("Car",))
    assert choose_images(index, ["000007", "000005"], 9) == [2, 0]
    with pytest.raises(ValueError, match="--image-id 000001: not in this split of 3 images"):
        choose_images(index, ["000001", "000005"], 9)


def test_models_must_know_the_same_data(tool, mono):
    with pytest.raises(ValueError, match="--compare-weights bev: its config has"):
        draw(tool, [*mono, "--compare-weights", f"bev={STUDENT}:{mono[3]}"])


def test_a_model_must_read_what_the_format_is(tool, work, tmp_path):
    words = [*arguments(work, tmp_path, "--weights", str(work / "student.pth")), "DATASETS.FORMAT", "kitti"]
    with pytest.raises(ValueError, match=r"FORMAT is 'kitti', .*multi-view models read frames"):
        draw(tool, words)
    with pytest.raises(ValueError, match=r"FORMAT 'kitti' need a detector that gives a MonoKnowledge"):
        draw(tool, [*words, "MODEL.META_ARCHITECTURE", "ToyDetector"])


def test_image_ids_are_for_monocular_datasets(tool, work, tmp_path):
    with pytest.raises(ValueError, match="--image-id is for monocular"):
        draw(tool, arguments(work, tmp_path, "--image-id", "000001"))


def test_no_split_to_draw_is_an_error(tool, tmp_path):
    words = ["--config-file", str(STUDENT), "--output", str(tmp_path), "DATASETS.TEST", "()"]
    with pytest.raises(ValueError, match=r"DATASETS\.TEST is empty; name the split to draw"):
        draw(tool, words)
