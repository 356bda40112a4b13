"""bevkd2 visualize failures, video and statistics, from their command lines."""

import json
import re
from urllib.parse import unquote

import cv2
import numpy as np
import pytest

from bevkd2.cli import visualize
from bevkd2.cli import visualize_failures as visualize_failures_tool
from bevkd2.cli.paths import file_name
from bevkd2.config import load_config
from bevkd2.data.kitti import load_kitti
from tests.cli.pages import WINDOWS, background, overflow, show
from tests.data.kitti_fixture import VAL
from tests.data.nuscenes_fixture import FixtureWorld
from tests.data.stored_fixture import (
    kitti_config,
    nuscenes_config,
    open_frames,
    store_kitti,
    store_nuscenes,
)


@pytest.fixture(scope="module")
def kitti(kitti_world, tmp_path_factory):
    """A config file, and a teacher that finds all, a student that finds the first object of each image."""
    folder = tmp_path_factory.mktemp("stored_kitti")
    (folder / "data.yaml").write_text(kitti_config(kitti_world).dump())
    store_kitti(kitti_world, folder / "teacher")
    store_kitti(kitti_world, folder / "student", keep=1)
    store_kitti(kitti_world, folder / "moved", shift=2.0)
    return folder


@pytest.fixture(scope="module")
def nuscenes(fixture_world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored_nuscenes")
    cfg = nuscenes_config(fixture_world)
    (folder / "data.yaml").write_text(cfg.dump())
    frames = open_frames(cfg)
    store_nuscenes(cfg, frames, folder / "teacher")
    store_nuscenes(cfg, frames, folder / "student", keep=1)
    return folder


def words(folder, command, output, *names, extra=()):
    found = [word for name in names for word in ("--detections", f"{name}={folder / name}")]
    return [command, "--config-file", str(folder / "data.yaml"), "--output", str(output), *found, *extra]


def read(output):
    return json.loads((output / "failures.json").read_text())


def test_failures_of_kitti_are_listed_and_drawn(kitti, tmp_path, capsys):
    assert visualize.main(words(kitti, "failures", tmp_path, "teacher", "student", "moved")) == 0
    table = read(tmp_path)
    assert (table["split"], table["reference"], table["compared"]) == ("val", "teacher", "student")
    losses = [entry["losses"]["student"]["loss"] for entry in table["frames"]]
    assert sorted(losses, reverse=True) == losses and losses[0] > 0
    assert {entry["frame"] for entry in table["frames"]} == set(VAL)
    teacher, student, moved = (table["models"][name] for name in ("teacher", "student", "moved"))
    assert teacher["found"] == teacher["objects"] and sum(losses) == teacher["found"] - student["found"]
    assert moved["far"] == moved["objects"]
    for entry in table["frames"]:
        assert cv2.imread(str(tmp_path / entry["picture"])).shape[1] > 3 * 720
    printed = capsys.readouterr().out
    assert "What student loses against teacher" in printed and str(tmp_path / "failures.json") in printed


def test_the_page_of_failures_has_what_the_table_has(kitti, tmp_path):
    written = visualize_failures(kitti, tmp_path, "--num", "2", "--sort", "missed", "--compare", "moved")
    table, text = read(tmp_path), (tmp_path / "index.html").read_text()
    assert written[0] == str(tmp_path / "index.html")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    chosen = [data[key] for key in ("reference", "compared", "sorted_by", "models")]
    assert chosen == ["teacher", "moved", "missed", ["student", "moved"]]
    assert [f["losses"] for f in data["frames"]] == [f["losses"] for f in table["frames"]]
    assert [f.get("picture") for f in data["frames"]] == [f.get("picture") for f in table["frames"]]
    for frame in data["frames"][:2]:
        picture = cv2.imread(str(tmp_path / frame["picture"]))
        assert picture.shape[:2] == (frame["height"], frame["width"])
    assert "picture" not in data["frames"][2]
    assert not re.search(r'(src|href)="(?!data:|failures\.json)', text)  # pictures: by the script


def visualize_failures(kitti, output, *extra):
    """Returns the printed paths."""
    args = words(kitti, "failures", output, "teacher", "student", "moved", extra=extra)
    tool = visualize_failures_tool
    return [str(path) for path in tool.run(tool.build_parser().parse_args(args[1:]))]


def cards(browser):
    """What is listed: the frame and its counts, from top to bottom."""
    found = []
    for card in browser.find_elements("css selector", "#list li"):
        names = [cell.text for cell in card.find_elements("css selector", "dt")]
        values = [cell.text for cell in card.find_elements("css selector", "dd")]
        title = card.find_element("css selector", "h3").text
        found.append((title.partition(". ")[2], dict(zip(names, values, strict=True))))
    return found


def expected(table, model, key, label=""):
    """The same from failures.json, sorted by a key; with a class, frames in which it is."""
    rows = []
    for entry in table["frames"]:
        loss = entry["losses"][model]
        loss = loss["per_class"].get(label) if label else loss
        if loss is not None:
            rows.append(
                (tuple(-loss[k] for k in (key, "loss", "error")), entry["place"], entry["frame"], loss)
            )
    texts = []
    for _, _, frame, loss in sorted(rows, key=lambda row: row[:2]):
        counts = {name: str(loss[name]) for name in ("loss", "missed", "far", "false", "gained")}
        error = f"{loss['error']:.2f} m"
        texts.append((frame, {**counts, "error": f"+{error}" if loss["error"] > 0 else error}))
    return texts


def choose(browser, name, value):
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("id", name)).select_by_visible_text(value)


@pytest.mark.slow
def test_the_page_of_failures_in_a_browser(browser, kitti, tmp_path):
    visualize_failures(kitti, tmp_path, "--num", "2")
    table, backgrounds = read(tmp_path), set()
    browser.get_log("browser")
    for scheme, width in WINDOWS:
        show(browser, tmp_path / "index.html", scheme, width)
        backgrounds.add((scheme, background(browser)))
        assert overflow(browser) <= 0
        assert cards(browser) == expected(table, "student", "loss")
        picture = browser.find_element("css selector", "#list img")
        loaded = "return arguments[0].decode().then(() => arguments[0].naturalWidth)"
        assert browser.execute_script(loaded, picture) > 3 * 720
        assert picture.get_attribute("src").endswith(table["frames"][0]["picture"])
    assert len(backgrounds) == 2
    count = browser.find_element("id", "count")
    assert count.text.startswith(f"{len(VAL)} of {len(VAL)} frames: ")
    # Another model, other orders.
    choose(browser, "model", "moved")
    choose(browser, "sort", "far")
    assert cards(browser) == expected(table, "moved", "far") != expected(table, "student", "loss")
    choose(browser, "sort", "order in the split")
    assert [frame for frame, _ in cards(browser)] == list(VAL)
    # Filters.
    choose(browser, "sort", "missed")
    choose(browser, "model", "student")
    choose(browser, "class", "Car")
    of_cars = expected(table, "student", "missed", "Car")
    assert cards(browser) == of_cars and len(of_cars) > 0
    choose(browser, "kind", "with missed")
    lost = [row for row in of_cars if row[1]["missed"] != "0"]
    assert cards(browser) == lost
    total = sum(int(counts["missed"]) for _, counts in lost)
    assert count.text.startswith(f"{len(lost)} of {len(VAL)} frames: {total} missed, 0 far")
    choose(browser, "kind", "with far")
    assert cards(browser) == [] and count.text.startswith("0 of ")
    choose(browser, "kind", "all")
    choose(browser, "class", "all")
    browser.find_element("id", "drawn").click()
    assert [frame for frame, _ in cards(browser)] == [
        frame for frame, _ in expected(table, "student", "missed") if frame in drawn_frames(table)
    ]
    assert browser.get_log("browser") == []


def drawn_frames(table):
    return {entry["frame"] for entry in table["frames"] if "picture" in entry}


def test_failures_are_compared_and_sorted_by_choice(kitti, tmp_path):
    extra = ["--compare", "moved", "--sort", "far", "--num", "1", "--far", "2.5", "--match", "0.9"]
    visualize.main(words(kitti, "failures", tmp_path, "teacher", "student", "moved", extra=extra))
    table = read(tmp_path)
    assert (table["compared"], table["sorted_by"], table["far"], table["match"]) == ("moved", "far", 2.5, 0.9)
    far = [entry["losses"]["moved"]["far"] for entry in table["frames"]]
    assert far == sorted(far, reverse=True) and far[0] > 0
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_failures_of_nuscenes_are_those_of_key_frames(nuscenes, tmp_path):
    visualize.main(words(nuscenes, "failures", tmp_path, "teacher", "student", extra=["--num", "1"]))
    table = read(tmp_path)
    assert len(table["frames"]) == 6 and table["frames"][0]["losses"]["student"]["missed"] > 0
    picture = cv2.imread(str(tmp_path / table["frames"][0]["picture"]))
    assert picture.shape[1] == 2 * 720 + 6 and picture.std() > 10


@pytest.mark.parametrize(
    ("names", "extra", "message"),
    [
        (["teacher"], [], "names 1 models, expected 2"),
        (["teacher", "teacher"], [], "already"),
        (["teacher", "student"], ["--compare", "x"], "expected one of student"),
        (["teacher", "student"], ["--num", "-1"], "--num is -1"),
        (["teacher", "student"], ["--match", "1.5"], "expected an IoU"),
        (["teacher", "student"], ["--match", "0"], "--match is 0.0"),
        (["teacher", "nothing"], [], "is not a folder"),
    ],
)
def test_a_wrong_command_line_is_an_error(kitti, tmp_path, names, extra, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        visualize.main(words(kitti, "failures", tmp_path, *names, extra=extra))
    for option in ("--far", "--match", "--score-thresh"):
        with pytest.raises(SystemExit):
            visualize.main(words(kitti, "failures", tmp_path, *names, extra=[option, "nan"]))
    with pytest.raises(ValueError, match="expected NAME=FOLDER"):
        visualize.main(words(kitti, "failures", tmp_path, extra=["--detections", "teacher"]))


@pytest.mark.parametrize("name", visualize.COMMANDS)
def test_every_command_has_a_help_of_its_own(name, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["bevkd2 visualize"])
    with pytest.raises(SystemExit):
        visualize.main([name, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: bevkd2 visualize {name} ")


def test_a_format_that_does_not_read_detections_says_so(kitti, tmp_path, monkeypatch):
    from bevkd2.data.format import DataFormat
    from bevkd2.data.kitti import KittiFormat

    monkeypatch.setattr(KittiFormat, "stored_frames", DataFormat.stored_frames)
    with pytest.raises(ValueError, match=r"implement KittiFormat\.stored_frames \(docs/visualization.md\)"):
        visualize.main(words(kitti, "failures", tmp_path, "teacher", "student"))


def decoded(path):
    av = pytest.importorskip("av", reason="PyAV (the extra `video`) is not installed")
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate)
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)], rate


def colored(frame, color):
    return int((abs(frame.astype(int) - np.array(color)) < 40).all(axis=-1).sum())


def test_a_video_has_the_frames_of_a_scene_at_its_rate(nuscenes, tmp_path, capsys):
    pytest.importorskip("av", reason="PyAV (the extra `video`) is not installed")
    extra = ["--scene", "scene-0002", "--width", "400"]
    visualize.main(words(nuscenes, "video", tmp_path, "teacher", "student", extra=extra))
    assert capsys.readouterr().out.split() == [str(tmp_path / "scene-0002.mp4")]
    frames, rate = decoded(tmp_path / "scene-0002.mp4")
    assert len(frames) == 3 and rate == pytest.approx(2.0) and frames[0].shape[1] == 806
    # The first object of a frame is a car; the student finds it, and the teacher the others as well.
    from bevkd2.visualization import class_palette

    car = class_palette(10)[0]
    assert all(colored(frame[:, :400], car) > 50 and colored(frame[:, 406:], car) > 50 for frame in frames)


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "..", "a\\b:c"])
def test_a_scene_whose_name_is_a_path_stays_in_the_folder(tmp_path, capsys, name):
    pytest.importorskip("av", reason="PyAV (the extra `video`) is not installed")
    world = FixtureWorld(tmp_path / "world", scenes=1, frames=2)
    world.tables["scene"][0]["name"] = name
    world.splits = {"both": [name]}
    world.write()
    cfg = nuscenes_config(world)
    (tmp_path / "data.yaml").write_text(cfg.dump())
    store_nuscenes(cfg, open_frames(cfg), tmp_path / "teacher")
    visualize.main(words(tmp_path, "video", tmp_path / "out" / "videos", "teacher"))
    (path,) = (tmp_path / "out").rglob("*.mp4")
    assert path.parent == tmp_path / "out" / "videos"
    assert capsys.readouterr().out.split() == [str(path)] and unquote(path.stem) == name


def test_names_that_are_no_path_are_kept():
    assert [file_name(name) for name in ("scene-0001", "Straße 5.b", "a_b")] == [
        "scene-0001",
        "Straße 5.b",
        "a_b",
    ]
    assert file_name("a/b") != file_name("a_b")


def test_a_video_of_single_images_is_the_split_in_order(kitti, tmp_path):
    pytest.importorskip("av", reason="PyAV (the extra `video`) is not installed")
    visualize.main(words(kitti, "video", tmp_path, "teacher", extra=["--fps", "5", "--width", "300"]))
    frames, rate = decoded(tmp_path / "all.mp4")
    assert len(frames) == len(VAL) and rate == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("extra", "message"),
    [(["--scene", "x"], "not one of the 2 scenes"), (["--fps", "0"], "--fps"), (["--width", "9"], "--width")],
)
def test_a_video_that_cannot_be_is_an_error(nuscenes, tmp_path, extra, message):
    with pytest.raises(ValueError, match=message):
        visualize.main(words(nuscenes, "video", tmp_path, "teacher", extra=extra))


def test_statistics_are_counted_and_drawn(kitti, kitti_world, tmp_path):
    command = ["statistics", "--config-file", str(kitti / "data.yaml"), "--output", str(tmp_path)]
    assert visualize.main([*command, "--split", "train", "--bin", "5"]) == 0
    found = json.loads((tmp_path / "object_statistics.json").read_text())
    classes = load_config(kitti / "data.yaml").DATASETS.CLASSES or ["Pedestrian", "Cyclist", "Car"]
    index = load_kitti(kitti_world, "train", tuple(classes))
    assert found["objects"] == len(index.labels) == sum(entry["number"] for entry in found["bins"])
    assert found["classes"] == list(classes) and found["bins"][0]["high"] == 5
    assert cv2.imread(str(tmp_path / "object_statistics.png")).std() > 10
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN is empty"):
        visualize.main([*command, "DATASETS.TRAIN", "()"])


def test_statistics_are_of_single_images(nuscenes, tmp_path):
    command = ["statistics", "--config-file", str(nuscenes / "data.yaml"), "--output", str(tmp_path)]
    with pytest.raises(ValueError, match="not single images"):
        visualize.main(command)
