"""``bevkd2 report`` on runs that were really trained, for seconds, and the page in a browser."""

from __future__ import annotations

import html
import json
import logging
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bevkd2.cli import analyze_distillation, report, train
from bevkd2.cli.console import run_cli
from bevkd2.data.synthetic import KittiWorldConfig, WorldConfig, generate
from bevkd2.engine import default_argument_parser
from tests.cli.pages import WINDOWS, background, overflow, show
from tests.cli.test_train import ROOT, distillation, words
from tests.experiments import tiny

HOSTILE = "</script><img src=x onerror=alert(1)>"


def train_all(lines: Iterable[list[str]]) -> None:
    """Trains each command line; their logs are closed."""
    handlers = list(logging.getLogger().handlers)
    for line in lines:
        train.run(default_argument_parser().parse_args(line))
    for handler in [h for h in logging.getLogger().handlers if h not in handlers]:
        logging.getLogger().removeHandler(handler)
        handler.close()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of two iterations: a teacher, a student and a distilled one with its gradients."""
    folder = tmp_path_factory.mktemp("report")
    config = WorldConfig(num_train_scenes=1, num_val_scenes=1, frames_per_scene=2, image_size=(88, 32))
    world, output, length = (
        generate(config, folder / "world", progress=False),
        folder / "demo",
        ("SOLVER.MAX_ITER", 2),
    )
    train_all(
        words(f"{file}.yaml", world, output / name, *length, *options)
        for name, file, options in (
            ("teacher", "teacher", ()),
            ("student", "student", ()),
            ("distilled", "distill", distillation(output / "teacher")),
        )
    )
    run = output / "distilled"
    line = [
        "--config-file",
        str(run / "config.yaml"),
        "--batches",
        "1",
        "--json",
        str(run / "gradients.json"),
    ]
    assert analyze_distillation.main([*line, "--weights", str(run / "model_final.pth")]) == 0
    gain = {"distilled": {"difference": 0.0125, "standard_error": 0.003}}
    (output / "summary.json").write_text(json.dumps({"gain": gain}))
    return output


@pytest.fixture(scope="module")
def page(demo: Path) -> Path:
    """The page of all three, with pictures of one frame."""
    path = demo.parent / "page.html"
    assert report.main([str(demo), "--output", str(path), "--frames", "1", "--device", "cpu"]) == 0
    return path


def write(*words: Any, tmp_path: Path) -> str:
    assert report.main([*map(str, words), "--frames", "0", "--output", str(tmp_path / "r.html")]) == 0
    return (tmp_path / "r.html").read_text()


def rows(text: str, caption: str) -> dict[str, list[str]]:
    """The cells of a table by the first one of each row; the header's too."""
    table = next(part for part in text.split("<table>") if f"<caption>{caption}</caption>" in part)
    lines = re.findall(r"<tr>(.*?)</tr>", table.split("</table>")[0])
    cells = [
        [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line)] for line in lines
    ]
    return {line[0]: line[1:] for line in cells}


@pytest.mark.slow
def test_the_page_has_the_numbers_of_the_files(demo: Path, page: Path) -> None:
    text = page.read_text()
    scores, gradients = rows(text, "Final scores"), rows(text, "Shares by part of the student")
    for name in ("teacher", "student", "distilled"):
        official = json.loads((demo / name / "inference" / "metrics_summary.json").read_text())
        assert scores[name][:3] == ["one run", f"{official['mean_ap']:.3f}", f"{official['nd_score']:.3f}"]
        assert scores[name][3] == f"{official['tp_errors']['trans_err']:.3f}"
        last = [json.loads(line) for line in (demo / name / "metrics.json").read_text().splitlines()]
        loss = [row["total_loss"] for row in last if "total_loss" in row][-1]
        assert f"{name} {loss:.4g}" in re.search(r'aria-label="total_loss over[^"]*', text)[0]
    losses = json.loads((demo / "distilled" / "gradients.json").read_text())["losses"]
    method, part = gradients["distilled"][0], gradients["run"][1]
    share = losses[f"loss_distill_{method}"]["share"][part]
    assert gradients["distilled"][1] == f"{100 * share:.2g} %"
    settings = rows(text, re.search(r"\d+ settings differ", text)[0])
    assert settings["MODEL.META_ARCHITECTURE"] == ["'BEVFormer'", "'BEVFormer'", "'Distiller'"]
    assert "OUTPUT_DIR" not in settings and not any(".RESOLVED" in key for key in settings)
    assert scores["distilled (its teacher)"][1:3] == scores["teacher"][1:3]
    assert rows(text, "The same in all runs")["bevkd2.d2 provider"]
    assert "<td>+0.013</td><td>+0.003</td>" in text  # the summary's difference and standard error


@pytest.mark.slow
def test_every_picture_is_inlined_and_named(page: Path) -> None:
    text = page.read_text()
    images = re.findall(
        r'<img src="(data:image/webp;base64,[^"]{1000,})" width="\d+" height="\d+" alt="([^"]+)"', text
    )
    alts = [alt for _, alt in images]
    assert len(set(alts)) == len(alts) == len(re.findall(r"<img\b", text))
    for name in ("teacher", "student", "distilled"):
        for kind in ("Predictions", "Spatial attention", "Temporal attention"):
            assert any(alt.startswith(f"{kind} of {name} in frame") for alt in alts), (kind, name)
    for kind in ("BEV response", "Features"):
        assert any(alt.startswith(f"{kind} of teacher, student, distilled in frame") for alt in alts), kind
    assert "have no pictures of" not in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)  # nothing is loaded from elsewhere


@pytest.mark.slow
def test_the_teacher_of_a_distillation_is_drawn_where_no_run_has_its_weights(
    demo: Path, tmp_path: Path
) -> None:
    path = tmp_path / "one.html"
    words = [demo / "distilled", "--frames", "1", "--device", "cpu", "--output", path]
    assert report.main(list(map(str, words))) == 0
    assert "Predictions of teacher of distilled in frame" in path.read_text()
    assert "one run, nothing to compare with" in path.read_text()


@pytest.mark.slow
def test_what_a_run_lacks_is_said(demo: Path, tmp_path: Path) -> None:
    run = tmp_path / "broken"
    shutil.copytree(demo / "distilled", run)
    for gone in ("gradients.json", "log.txt", "inference/metrics_details.json"):
        (run / gone).unlink()
    with (run / "metrics.json").open("a") as file:
        file.write('{"iteration": 3, "total_lo')
    text = html.unescape(write(run, tmp_path=tmp_path))
    torn = len((run / "metrics.json").read_text().splitlines())
    assert f"broken: metrics.json has no whole row in line {torn}; the rest is shown" in text
    assert "broken: no gradients.json; bevkd2 analyze-distillation --config-file" in text
    assert "broken: no log.txt" in text and "no metrics_details.json: an earlier version scored it" in text
    assert "no picture was asked for (--frames 0)" in text
    (run / "model_final.pth").unlink()
    (run / "inference" / "metrics_summary.json").write_text('{"mean_ap": 1}')
    (run / "config.yaml").write_text("SEED: [")
    assert report.main([str(run), "--frames", "1", "--output", str(tmp_path / "r.html")]) == 0
    text = html.unescape((tmp_path / "r.html").read_text())
    assert "metrics_summary.json is not what an evaluation writes (KeyError" in text
    assert "is not plain YAML" in text and "broken: no config.yaml, so its model cannot be built" in text


@pytest.mark.slow
def test_runs_that_differ_in_the_seed_have_an_interval(demo: Path, tmp_path: Path) -> None:
    for seed, score in ((1, 0.1), (2, 0.2)):
        run = tmp_path / f"seed{seed}"
        shutil.copytree(demo / "student", run)
        config = yaml.safe_load((run / "config.yaml").read_text()) | {"SEED": seed, "OUTPUT_DIR": str(run)}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        summary = json.loads((run / "inference" / "metrics_summary.json").read_text()) | {"mean_ap": score}
        (run / "inference" / "metrics_summary.json").write_text(json.dumps(summary))
    text = write(tmp_path / "seed1", tmp_path / "seed2", tmp_path=tmp_path)
    # Mean 0.15; t(0.975, 1) = 12.706 times sd / sqrt(2) = 0.05.
    assert "<td>2</td><td>mAP</td><td>0.150</td><td>0.071</td><td>-0.485 to 0.785</td>" in text
    assert "Means over seeds" not in write(tmp_path / "seed1", demo / "distilled", tmp_path=tmp_path)


@pytest.fixture
def hostile(demo: Path, tmp_path: Path) -> Path:
    """A run whose folder, settings, classes and losses are markup."""
    run = tmp_path / "<img src=x onerror=alert(2)>"
    shutil.copytree(demo / "student", run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["DATASETS"]["VERSION"] = HOSTILE
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    summary = json.loads((run / "inference" / "metrics_summary.json").read_text())
    for key in ("mean_dist_aps", "label_tp_errors"):
        summary[key][HOSTILE] = summary[key]["car"]
    (run / "inference" / "metrics_summary.json").write_text(json.dumps(summary))
    with (run / "metrics.json").open("a") as file:
        file.write(json.dumps({"iteration": 9, "total_loss": HOSTILE, f"loss_{HOSTILE}": 1.0}) + "\n")
    return run


@pytest.mark.slow
def test_markup_in_files_is_text(hostile: Path, demo: Path, tmp_path: Path) -> None:
    text = write(hostile, demo / "distilled", tmp_path=tmp_path)
    assert "<img" not in text and text.count("</script>") == 1
    assert html.escape(HOSTILE, quote=True).replace("&#x27;", "&#39;") in text


def test_an_experiment_has_its_tables_and_says_what_was_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [{"name": "plain"}, {"name": "better"}, {"name": "single"}, {"name": "none"}]
    experiment = tiny.marked(tmp_path, rows=listed, seeds=[0, 1])
    scores = {"plain": {0: 0.2, 1: 0.3}, "better": {0: 0.4, 1: 0.6}, "single": {0: 0.5}}
    tiny.invent(experiment, tmp_path / "results", scores)
    text = write(experiment.path, "--results", tmp_path / "results", tmp_path=tmp_path)
    table = rows(text, experiment.primary[0])
    assert table["better"][:4] == ["2", "0.500", "0.141", "+0.250"]
    assert f"{experiment.primary[0]}, one run, so no interval: single" in text
    assert "Not run: none; single (seeds 1)." in text
    assert re.search(r'class="line s1"[^>]*/></svg>better</li>', text)  # the legend of the curves
    others = text.partition('id="tiny-others"')[2].partition("</section>")[0]
    # The other metric is ten times the first: so are the difference and its interval.
    assert "Car_2D_moderate_R40. better: +2.500, -3.853 to +8.853; single: one run, no interval" in others
    assert "no AP and no errors per class" in others
    assert "better: +0.250, -0.385 to +0.885" in text and "single: one run, no interval" in text
    # The folder of the results, where the YAML file is in experiments/.
    (tmp_path / "experiments").mkdir()
    shutil.copy(experiment.path, tmp_path / "experiments")
    monkeypatch.chdir(tmp_path)
    assert rows(write("results/tiny", tmp_path=tmp_path), experiment.primary[0]) == table


def test_outputs_that_are_no_runs_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*words: Any) -> str:
        assert run_cli(report.main, [*map(str, words), "--output", str(tmp_path / "r.html")]) == 1
        assert not (tmp_path / "r.html").exists()
        return capsys.readouterr().err

    (tmp_path / "empty").mkdir()
    assert "no run: it has no config.yaml" in error(tmp_path / "empty")
    assert "gone does not exist; name a run's OUTPUT_DIR" in error(tmp_path / "gone")
    assert "--frames is -1, expected 0 or more" in error(tmp_path / "empty", "--frames", -1)
    files = {"nuscenes": "metrics_summary.json", "kitti": "kitti_scores.json"}
    kitti = {"AP_R40": {"car/3d/moderate": 12.5}, "AOS_R40": {}, "not_evaluated": []}
    means = dict.fromkeys(("trans_err", "scale_err", "orient_err", "vel_err", "attr_err"), 1.0)
    nuscenes = {
        "mean_ap": 0.5,
        "nd_score": 0.4,
        "tp_errors": means,
        "mean_dist_aps": {},
        "label_tp_errors": {},
    }
    for name, content in (("nuscenes", nuscenes), ("kitti", kitti)):
        (tmp_path / name / "inference").mkdir(parents=True)
        (tmp_path / name / "metrics.json").write_text('{"iteration": 0, "total_loss": 1.0}\n')
        (tmp_path / name / "inference" / files[name]).write_text(json.dumps(content))
    message = error(tmp_path / "nuscenes", tmp_path / "kitti", "--frames", 0)
    assert "nuscenes by the rules of nuScenes; kitti by the rules of KITTI" in message
    assert rows(write(tmp_path / "kitti", tmp_path=tmp_path), "Final scores")["kitti"][2] == "12.50"


@pytest.mark.slow
def test_the_page_in_a_browser(browser: Any, page: Path, demo: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    wanted = []
    for name in ("teacher", "student", "distilled"):
        official = json.loads((demo / name / "inference" / "metrics_summary.json").read_text())
        wanted.append([name, "one", "run", f"{official['mean_ap']:.3f}", f"{official['nd_score']:.3f}"])
    backgrounds = set()
    for scheme, width in WINDOWS:
        open_all(browser, page, scheme, width)
        backgrounds.add((scheme, background(browser)))
        assert all(cells in [line[:5] for line in score_cells(browser)] for cells in wanted)
        move_slider(browser, Keys, "teacher", "student")
    assert len(backgrounds) == 2
    assert browser.get_log("browser") == []


def open_all(browser: Any, page: Path, scheme: str, width: int) -> None:
    """Opens a page and all that it shows on request; it fits the window."""
    show(browser, page, scheme, width)
    for details in browser.find_elements("css selector", "details"):
        browser.execute_script("arguments[0].open = true", details)
    assert overflow(browser) <= 0


def score_cells(browser: Any) -> list[list[str]]:
    return [row.text.split() for row in browser.find_elements("css selector", "#scores tbody tr")]


def move_slider(browser: Any, keys: Any, first: str, other: str, last: str = "distilled") -> None:
    """Moves the divider and chooses models; what is seen follows."""
    compare = browser.find_element("css selector", ".compare")
    slider, output = (compare.find_element("css selector", name) for name in ("input", "output"))
    assert slider.accessible_name.startswith("Divider between the two models, frame")
    shown = [figure for figure in compare.find_elements("css selector", "figure") if figure.is_displayed()]
    assert [figure.get_attribute("class") for figure in shown] == ["left", "right"]
    assert "50%" in shown[0].value_of_css_property("clip-path")
    slider.send_keys(keys.END)
    assert output.text == "100 %" and "0%" in shown[0].value_of_css_property("clip-path")
    slider.send_keys(keys.ARROW_LEFT)
    assert output.text == "99 %" and slider.get_attribute("value") == "99"
    assert slider.get_attribute("aria-valuetext") == f"99 % {first}, the rest {last}"
    compare.find_element("css selector", "select").send_keys(other)
    assert slider.get_attribute("aria-valuetext") == f"99 % {other}, the rest {last}"


@pytest.fixture(scope="module")
def kitti(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of two iterations, and one that is distilled from the demo's teacher."""
    folder = tmp_path_factory.mktemp("report_kitti")
    config = KittiWorldConfig(num_train_frames=2, num_val_frames=2, image_size=(208, 64))
    world = generate(config, folder / "world", progress=False)
    common = (
        "MODEL.DEVICE",
        "cpu",
        "SOLVER.MAX_ITER",
        2,
        "SOLVER.IMS_PER_BATCH",
        1,
        "DATALOADER.NUM_WORKERS",
        0,
    )
    train_all(
        [
            *("--config-file", str(ROOT / "configs" / "demo_mono" / f"{file}.yaml")),
            *("DATASETS.ROOT", str(world), "OUTPUT_DIR", str(folder / "runs" / name), *map(str, common)),
        ]
        for name, file in (("student", "student"), ("distilled", "distill"))
    )
    return folder / "runs"


@pytest.mark.slow
def test_a_page_of_kitti_with_pictures_in_a_browser(browser: Any, kitti: Path, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    page = tmp_path / "kitti.html"
    assert report.main([str(kitti), "--output", str(page), "--frames", "1", "--device", "cpu"]) == 0
    teacher = "teacher of distilled"
    for scheme, width in WINDOWS:
        open_all(browser, page, scheme, width)
        headers = [cell.text for cell in browser.find_elements("css selector", "#scores thead th")]
        column = headers.index("car 3D moderate")
        for name in ("student", "distilled"):
            scores = json.loads((kitti / name / "inference" / "kitti_scores.json").read_text())
            cells = next(line for line in score_cells(browser) if line[0] == name)
            value = scores["AP_R40"]["car/3d/moderate"]
            assert cells[column + 1] == ("-" if value is None else f"{value:.2f}")  # "one run" is two words
        move_slider(browser, Keys, teacher, "student")
        images = browser.find_elements("css selector", "#features img")
        assert [image.get_attribute("alt").split(" in frame")[0] for image in images] == [
            f"Features of {teacher}, student, distilled"
        ]
        loaded = "return [...document.images].every((image) => image.complete && image.naturalWidth > 300)"
        assert browser.execute_script(loaded)
        lacks = browser.find_element("css selector", "#detections .lacks").text
        assert lacks.endswith("no pictures of: Spatial attention, Temporal attention, BEV response")
    assert browser.get_log("browser") == []


@pytest.mark.slow
def test_markup_in_files_runs_nothing(browser: Any, hostile: Path, demo: Path, tmp_path: Path) -> None:
    write(hostile, demo / "distilled", tmp_path=tmp_path)
    show(browser, tmp_path / "r.html", "light", 390)
    assert browser.find_elements("css selector", "img") == []
    assert HOSTILE in browser.find_element("css selector", "#config").text
    assert overflow(browser) <= 0
    assert browser.get_log("browser") == []
