import json

import pytest
import torch

from bevkd2.d2 import CommonMetricPrinter, EventStorage, EventWriter, JSONWriter, TensorboardXWriter


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines(tmp_path):
    path = tmp_path / "metrics.json"
    with EventStorage() as storage:
        writer = JSONWriter(str(path), window_size=2)
        for storage.iter, value in enumerate([1.0, 3.0]):
            storage.put_scalar("loss", value)
        storage.put_scalar("lr", 0.5, smoothing_hint=False)
        writer.write()
        writer.write()
        storage.step()
        storage.put_scalar("nds", 0.25, smoothing_hint=False)
        writer.write()
        writer.close()
    assert rows(path) == [{"iteration": 1, "loss": 2.0, "lr": 0.5}, {"iteration": 2, "nds": 0.25}]
    assert path.read_text().startswith('{"iteration": 1, "loss": 2.0, "lr": 0.5}\n')


def test_json_separates_iterations_and_appends(tmp_path):
    path = tmp_path / "metrics.json"
    for start in (0, 10):
        with EventStorage(start) as storage:
            storage.put_scalar("a", 1.0)
            storage.step()
            storage.put_scalar("b", 2.0)
            writer = JSONWriter(str(path))
            writer.write()
            writer.close()
    assert [row["iteration"] for row in rows(path)] == [0, 1, 10, 11]


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with EventStorage() as storage:
        writer = TensorboardXWriter(str(tmp_path), window_size=2)
        for storage.iter, value in enumerate([1.0, 3.0]):
            storage.put_scalar("loss", value)
        storage.put_image("camera", torch.zeros(3, 2, 2, dtype=torch.uint8))
        storage.put_histogram("weights", torch.tensor([0.0, 0.0, 1.0]), bins=2)
        writer.write()
        storage.step()
        storage.put_scalar("nds", 0.5)
        writer.write()
        writer.close()
    read = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in read.Scalars("loss")] == [(1, 2.0)]
    assert [(event.step, event.value) for event in read.Scalars("nds")] == [(2, 0.5)]
    assert [event.step for event in read.Images("camera")] == [1]
    (histogram,) = read.Histograms("weights")
    value = histogram.histogram_value
    assert (value.min, value.max, value.num, value.sum, value.sum_squares) == (0.0, 1.0, 3, 1.0, 1.0)
    assert list(value.bucket) == [2.0, 1.0]
    assert list(value.bucket_limit) == [0.5, 1.0]


def test_tensorboard_makes_no_file_before_it_writes(tmp_path):
    writer = TensorboardXWriter(str(tmp_path / "log"))
    writer.close()
    assert not (tmp_path / "log").exists()


def memory() -> str:
    if not torch.cuda.is_available():
        return ""
    return f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M"


def test_line_of_progress(engine_log):
    with EventStorage() as storage:
        printer = CommonMetricPrinter(max_iter=10, window_size=2)
        for storage.iter, loss in enumerate([100.0, 1.0, 2.0]):
            storage.put_scalars(total_loss=loss, loss_kd=loss / 3, time=2.0 + storage.iter, data_time=0.25)
            storage.put_scalar("[metric]scale", 12345.678)
            storage.put_scalar("lr", 0.00012345678, smoothing_hint=False)
            storage.put_scalar("nds", 0.5)
        printer.write()
        assert storage.latest()["eta_seconds"] == (21.0, 2)
    assert engine_log == [
        " eta: 0:00:21  iter: 2  total_loss: 1.5  loss_kd: 0.5  [metric]scale: 1.235e+04  "
        "time: 3.0000  last_time: 4.0000  data_time: 0.2500  last_data_time: 0.2500   "
        "lr: 0.00012346  " + memory()
    ]


def test_line_in_the_first_iterations(engine_log):
    with EventStorage() as storage:
        printer = CommonMetricPrinter(max_iter=10)
        printer.write()
        storage.step()
        printer.write()
        CommonMetricPrinter().write()
    assert engine_log[0] == f" iter: 0       lr: N/A  {memory()}"
    assert engine_log[1] == f" eta: 0:00:00  iter: 1       lr: N/A  {memory()}"
    assert engine_log[2] == f" iter: 1       lr: N/A  {memory()}"


def test_no_line_after_the_end(engine_log):
    with EventStorage(start_iter=10):
        CommonMetricPrinter(max_iter=10).write()
    assert engine_log == []


def test_writer_interface():
    with pytest.raises(NotImplementedError):
        EventWriter().write()
    EventWriter().close()
