"""Several processes."""

from __future__ import annotations

import json
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from bevkd2.engine import default_argument_parser, launch
from bevkd2.engine.launch import _run
from tests.engine.launch_worker import main
from tests.engine.toys import TOY_OPTIONS
from tests.limits import PROGRAM_SECONDS

# No dropout: a batch in two halves then has the gradient of the whole.
OPTIONS = [*map(str, TOY_OPTIONS), "SEED", "-1", "SOLVER.MAX_ITER", "3", "MODEL.BEVFORMER.DROPOUT", "0.0"]


def reports(output: Path, count: int) -> list[dict[str, Any]]:
    return [json.loads((output / f"report{rank}.json").read_text()) for rank in range(count)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("two")
    args = default_argument_parser().parse_args([*OPTIONS, "OUTPUT_DIR", str(output)])
    timeout = timedelta(seconds=PROGRAM_SECONDS)
    launch(main, 2, dist_url="auto", args=(args,), timeout=timeout, device="cpu")
    return output


def test_gradients_are_averaged_and_weights_stay_equal(two: Path) -> None:
    first, second = reports(two, 2)
    assert first["gradient"] == second["gradient"] and first["weights"] == second["weights"]


def test_all_processes_evaluate_with_the_buffers_of_the_main_one(two: Path) -> None:
    first, second = reports(two, 2)
    assert first["statistics"] == second["statistics"] == 0


def test_two_processes_train_as_one_on_the_whole_batch(two: Path, tmp_path: Path) -> None:
    report = reports(two, 1)[0]
    main(
        default_argument_parser().parse_args(
            [*OPTIONS, "SEED", str(report["seed"]), "OUTPUT_DIR", str(tmp_path)]
        )
    )
    assert report["weights"] == pytest.approx(reports(tmp_path, 1)[0]["weights"], abs=1e-5)


def test_seed_is_shared_and_random_numbers_are_not(two: Path) -> None:
    first, second = reports(two, 2)
    assert first["seed"] == second["seed"] >= 0
    assert first["setup_draw"] != second["setup_draw"] and first["step_draw"] != second["step_draw"]


def test_nan_on_one_rank_stops_every_rank_before_the_step(two: Path) -> None:
    first, second = reports(two, 2)
    assert first["stopped_by"] == "NonFiniteLossError" and second["stopped_by"] == "NonFiniteGradientError"


def test_evaluation_is_gathered_from_all_processes(two: Path) -> None:
    first, second = reports(two, 2)
    assert first["latest"]["toy/count"] == 6 and "toy/count" not in second["latest"]


def test_every_process_has_its_log_and_only_the_first_writes_the_rest(two: Path) -> None:
    found = {path.name for path in two.iterdir()}
    assert {"log.txt", "log.txt.rank1", "model_final.pth", "config.yaml", "metrics.json"} <= found
    assert "rank 0 of 2 processes" in (two / "log.txt").read_text()
    assert len((two / "metrics.json").read_text().splitlines()) >= 3


def fail_if_called() -> None:
    raise AssertionError("main was called")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_more_processes_than_gpus(device: str) -> None:
    message = r"--num-gpus 2 asks for 2 GPUs, but PyTorch sees 0; .*MODEL\.DEVICE cpu for 2 processes"
    with pytest.raises(ValueError, match=message):
        launch(fail_if_called, 2, dist_url="auto", device=device)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 1, 0), r"--num-gpus is 0, expected at least 1: .*MODEL\.DEVICE cpu"),
        ((1, 0, 0), r"--num-machines is 0, expected at least 1"),
        ((1, 2, 2), r"--machine-rank is 2, expected 0 to 1"),
        ((1, 1, 1), r"--machine-rank is 1, expected 0 to 0"),
        ((1, 2, -1), r"--machine-rank is -1"),
    ],
)
def test_invalid_numbers_of_processes_are_errors(numbers: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        launch(fail_if_called, *numbers, dist_url="tcp://127.0.0.1:1", device="cpu")


def test_auto_url_is_of_one_machine() -> None:
    with pytest.raises(ValueError, match="--dist-url auto finds a port of one machine"):
        launch(fail_if_called, 1, num_machines=2, dist_url="auto", device="cpu")


def test_torchrun_and_num_gpus_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ValueError, match=r"--num-gpus 2 under a torchrun with 4 processes.* leave --num-gpus out"
    ):
        launch(fail_if_called, 2, device="cpu")


def test_one_process_is_called_directly() -> None:
    assert launch(lambda x: x + 1, 1, args=(2,), device="auto") == 3


def test_a_port_that_is_taken_names_the_remedy() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        url = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        group = {"init_method": url, "world_size": 2, "rank": 0, "timeout": timedelta(seconds=5)}
        with pytest.raises(
            ConnectionError, match=rf"--dist-url {url}: the port is taken.*add --dist-url auto"
        ):
            _run(main, (), group, 0, 2, on_cpu=True)


def test_a_place_where_nobody_listens_is_named() -> None:
    group = {"init_method": "tcp://127.0.0.1:9", "world_size": 2, "rank": 1, "timeout": timedelta(seconds=1)}
    with pytest.raises(
        ConnectionError, match=r"--dist-url tcp://127\.0\.0\.1:9: the processes could not meet"
    ):
        _run(main, (), group, 1, 2, on_cpu=True)


@pytest.mark.parametrize("url", ["127.0.0.1:29500", "tcp://host", "", "http://host:1"])
def test_a_malformed_url_is_named(url: str) -> None:
    with pytest.raises(
        ValueError, match=r"--dist-url is .*, expected auto \(one machine\), or tcp://HOST:PORT"
    ):
        launch(main, 2, dist_url=url, device="cpu")
