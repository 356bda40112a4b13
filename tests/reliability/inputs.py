"""Faults of users' inputs, files that would execute something, and odd use of the ops: the tests of each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.reliability.families import ROOT
from tests.reliability.report import Row, count_tests

_CHECKS = "gradcheck or opcheck"
TESTS: dict[str, tuple[str, ...]] = {
    "inputs of users, of the kinds of public reports: right, or one error that names what is wrong": (
        # NaN and infinity: in a deformable convolution, in losses and gradients, in weights and predictions
        "tests/modeling/backbones/test_deform_conv.py::test_nan_comes_out_where_it_went_in",
        "tests/modeling/bev/test_bevformer.py::test_bad_samples_are_named",
        "tests/data/test_format.py::test_a_loss_that_is_not_finite_names_the_samples_of_any_format",
        "tests/engine/test_trainer.py::test_nan_loss_stops_before_the_step",
        "tests/engine/test_trainer.py::test_infinite_gradient_stops_before_the_step",
        "tests/engine/test_build.py::test_nan_leaves_the_last_good_checkpoint",
        # Images, samples without anything to learn from, annotations
        *("tests/data/test_image_files.py", "tests/data/test_targets.py", "tests/data/test_kitti.py"),
        *("tests/kitti/test_calibration.py", "tests/kitti/test_frame_lists.py", "tests/kitti/test_labels.py"),
        *("tests/nuscenes/test_tables.py", "tests/nuscenes/test_json_files.py"),
        "tests/data/nuscenes/test_dataset.py",
        # Detections that a scorer gets
        *("tests/evaluation/test_check_detections.py", "tests/evaluation/test_left_out.py"),
        # Configs, output folders, checkpoints, what a run resumes from
        *("tests/config/test_node.py", "tests/experiments/test_spec.py", "tests/engine/test_run_folder.py"),
        *("tests/engine/test_defaults.py", "tests/checkpoint/test_io.py", "tests/checkpoint/test_strict.py"),
        *("tests/checkpoint/test_checkpointer.py", "tests/cli/test_import_weights.py"),
        # Arguments of ops
        "tests/ops/test_arguments.py",
    ),
    "nothing executes, no path leaves its folder: pickles, YAML, options, tables, lists, checkpoints": (
        "tests/checkpoint/test_io.py::test_pickle_bomb_is_refused_and_not_executed",
        "tests/checkpoint/test_io.py::test_bare_pickle_bomb_is_refused_under_every_suffix",
        "tests/checkpoint/test_io.py::test_a_bomb_beside_tensors_is_not_executed_and_named",
        "tests/checkpoint/test_io.py::test_every_instruction_that_calls_is_inert",
        "tests/cli/test_train.py::test_pickle_bomb_as_weights_is_refused_and_not_executed",
        "tests/cli/test_import_weights.py::test_pickles_are_refused",
        "tests/config/test_node.py::test_python_tags_are_refused_and_nothing_is_executed",
        "tests/config/test_node.py::test_the_payload_runs_with_unsafe_load",  # else the test before is empty
        "tests/config/test_node.py::test_option_is_not_evaluated",
        "tests/checkpoint/test_checkpointer.py::test_last_checkpoint_names_a_file_beside_it",
        "tests/data/nuscenes/test_dataset.py::test_image_outside_of_the_root_is_refused",
        "tests/data/nuscenes/test_index.py::test_cache_that_names_images_outside_of_the_root_is_built_again",
        "tests/data/nuscenes/test_index.py::test_cache_holds_no_pickle",
        "tests/kitti/test_frame_lists.py::test_files_that_are_not_frame_lists_are_refused",
    ),
    "ops under odd use: sizes of 0, layouts, 2^31 elements, forks, threads, copies, torch.func, export": (
        *("tests/ops/test_odd_use.py", "-k", f"not ({_CHECKS})"),
    ),
    "gradcheck and opcheck of the ops": ("tests/ops", "-k", _CHECKS),
}


def prove(place: Path, names: Sequence[str] = tuple(TESTS)) -> list[Row]:
    """Runs the tests of each row with pytest; a case is a test that ran."""
    rows = []
    for number, name in enumerate(names):
        row, results = Row(name), place / f"inputs_{number}.xml"
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={results}"]
        status = subprocess.run([*command, *TESTS[name]], cwd=ROOT, check=False).returncode
        count_tests(row, "pytest", status, results)
        rows.append(row)
    return rows
