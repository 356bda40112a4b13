"""From a real JPEG to the official score: a small model overfits one nuScenes key frame."""

from pathlib import Path

import pytest
import yaml

from bevkd2.cli.train import main

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_one_real_key_frame_is_overfitted(shared_dir: Path, tmp_path: Path) -> None:
    command = ["--config-file", str(ROOT / "configs" / "demo" / "one_frame.yaml"), "DATASETS.ROOT"]
    command += [str(shared_dir / "real" / "nuscenes-one"), "DATASETS.CACHE_DIR", str(tmp_path / "cache")]
    # The devkit counts the five classes without ground truth as 0: its own mean is 0.5 at most.
    expected = [["mAP_present", 0.9, 0.1], ["mAP", 0.45, 0.05], ["mASE_present", 0, 0.1]]
    expected += [["mAOE_present", 0, 0.1], ["mATE_present", 0, 0.1]]
    command += ["OUTPUT_DIR", str(tmp_path / "out"), "MODEL.DEVICE", "cpu"]
    command += ["TEST.EXPECTED_RESULTS", str([["bbox", *row] for row in expected])]
    assert main(command) == 0  # a score that is not the expected one ends the process
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert config["DATASETS"]["VERSION"] == "v1.0-one"
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "5 of 10 classes have ground truth in one" in log
