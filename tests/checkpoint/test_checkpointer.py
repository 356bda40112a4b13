"""Checkpoints of a training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bevkd2.checkpoint import Checkpointer, CheckpointFileError, StateDictMismatchError, load_file, save_file
from bevkd2.d2 import PeriodicCheckpointer


class Pair(nn.Module):
    """A student with adapters; the teacher is not part of a checkpoint."""

    def __init__(self, adapter_width: int = 2) -> None:
        super().__init__()
        self.student = nn.Linear(2, 3)
        self.methods = nn.ModuleDict({"kd": nn.Linear(2, adapter_width)})

    def checkpoint_parts(self) -> dict[str, nn.Module]:
        return {"model": self.student, "distill": self.methods}


class Counter:
    def __init__(self, value: int = 0) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def saved(tmp_path: Path) -> tuple[Pair, str]:
    pair = Pair()
    Checkpointer(pair, str(tmp_path), trainer=Counter(7)).save("model_0000004", iteration=4)
    return pair, str(tmp_path / "model_0000004.pth")


def test_file_holds_plain_student_adapters_and_trainer(tmp_path: Path) -> None:
    _, path = saved(tmp_path)
    content = load_file(path)
    assert set(content) == {"model", "distill", "trainer", "iteration"}
    assert set(content["model"]) == {"weight", "bias"} and set(content["distill"]) == {"kd.weight", "kd.bias"}
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"


def test_training_checkpoint_loads_into_the_plain_student(tmp_path: Path) -> None:
    pair, path = saved(tmp_path)
    plain = nn.Linear(2, 3)
    rest = Checkpointer(plain).load(path, checkpointables=[])
    assert same(plain, pair.student) and set(rest) == {"distill", "trainer", "iteration"}


def test_resume_restores_all_parts(tmp_path: Path) -> None:
    pair, _ = saved(tmp_path)
    other, counter = Pair(), Counter()
    checkpointer = Checkpointer(other, str(tmp_path), trainer=counter)
    assert checkpointer.has_checkpoint()
    assert checkpointer.resume_or_load("ignored.pth", resume=True) == {"iteration": 4}
    assert same(pair, other) and counter.value == 7


def test_without_resume_only_the_model_is_loaded(tmp_path: Path) -> None:
    pair, path = saved(tmp_path)
    other, counter = Pair(adapter_width=5), Counter()
    Checkpointer(other, str(tmp_path), trainer=counter).resume_or_load(path, resume=False)
    assert same(pair.student, other.student) and counter.value == 0


def test_resume_of_other_adapters_is_a_named_error(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(
        StateDictMismatchError, match=r"model_0000004\.pth: distill does not fit ModuleDict.*kd\.weight"
    ):
        Checkpointer(Pair(5), str(tmp_path), trainer=Counter()).resume_or_load("", resume=True)


def test_resume_from_bare_weights_is_a_named_error(tmp_path: Path) -> None:
    pair = Pair()
    Checkpointer(pair.student, str(tmp_path)).save("student")
    with pytest.raises(
        CheckpointFileError, match=r"student\.pth lacks distill, trainer .*leave out --resume"
    ):
        Checkpointer(pair, str(tmp_path), trainer=Counter()).resume_or_load("", resume=True)


def test_allowance_holds_for_weights_and_not_for_resume(tmp_path: Path) -> None:
    wide = nn.ModuleDict({"backbone": nn.Linear(1, 1), "head": nn.Linear(1, 1)})
    Checkpointer(nn.ModuleDict({"backbone": wide["backbone"]}), str(tmp_path)).save("backbone")
    checkpointer = Checkpointer(wide, str(tmp_path), allow_missing=["head."])
    checkpointer.load(str(tmp_path / "backbone.pth"), checkpointables=[])
    with pytest.raises(StateDictMismatchError, match=r"head\.weight"):
        checkpointer.resume_or_load("", resume=True)


def test_weights_of_the_user_are_no_checkpoint_of_the_training(tmp_path: Path) -> None:
    save_file({"model": {}}, tmp_path / "model_published.pth")
    assert not Checkpointer(nn.Linear(1, 1), str(tmp_path)).has_checkpoint()


def test_nothing_to_resume_starts_from_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pair, path = saved(tmp_path)
    plain = nn.Linear(2, 3)
    Checkpointer(plain, str(tmp_path / "empty")).resume_or_load(path, resume=True)
    assert same(plain, pair.student) and "nothing to resume" in caplog.text


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [Path.unlink, torn, lambda path: path.write_bytes(b"")])
def test_a_damaged_last_checkpoint_is_replaced_by_the_newest_other(
    tmp_path: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    pair, counter = Pair(), Counter()
    checkpointer = Checkpointer(pair, str(tmp_path), trainer=counter)
    for iteration, name in (
        (4, "model_0000004"),
        (9, "model_best"),
        (2, "model_0000002"),
        (14, "model_final"),
    ):
        counter.value = iteration
        checkpointer.save(name, iteration=iteration)
    damage(tmp_path / "model_final.pth")
    Checkpointer(Pair(), str(tmp_path)).save("model_0000020", iteration=20)  # not to be resumed from
    checkpointer.tag_last_checkpoint("model_final.pth")
    assert checkpointer.has_checkpoint()
    assert checkpointer.resume_or_load("", resume=True) == {"iteration": 9} and counter.value == 9
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "model_final.pth" in warning and "model_best.pth instead (iteration 9)" in warning


@pytest.mark.parametrize("content", ["", " \n", None])
def test_an_empty_or_missing_mark_is_replaced_by_the_newest(tmp_path: Path, content: str | None) -> None:
    counter = Counter()
    checkpointer = Checkpointer(Pair(), str(tmp_path), trainer=counter)
    for iteration in (4, 9):
        counter.value = iteration
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    mark = tmp_path / "last_checkpoint"
    mark.unlink() if content is None else mark.write_text(content)
    assert checkpointer.has_checkpoint()
    checkpointer.resume_or_load("", resume=True)
    assert counter.value == 9


def test_without_any_whole_checkpoint_the_last_one_is_the_error(tmp_path: Path) -> None:
    _, path = saved(tmp_path)
    Path(path).write_bytes(b"")
    with pytest.raises(CheckpointFileError, match=r"model_0000004\.pth is damaged"):
        Checkpointer(Pair(), str(tmp_path), trainer=Counter()).resume_or_load("", resume=True)
    assert Path(path).read_bytes() == b""


def test_last_checkpoint_that_was_deleted_is_a_named_error(tmp_path: Path) -> None:
    _, path = saved(tmp_path)
    Path(path).unlink()
    with pytest.raises(FileNotFoundError, match=r"model_0000004\.pth does not exist"):
        Checkpointer(Pair(), str(tmp_path), trainer=Counter()).resume_or_load("", resume=True)


@pytest.mark.parametrize("name", ["../x.pth", "/etc/x.pth", "sub/x.pth", ".."])
def test_last_checkpoint_names_a_file_beside_it(tmp_path: Path, name: str) -> None:
    saved(tmp_path)
    (tmp_path / "last_checkpoint").write_text(name)
    with pytest.raises(CheckpointFileError, match=r"last_checkpoint names .* expected the name of a file"):
        Checkpointer(Pair(), str(tmp_path), trainer=Counter()).resume_or_load("", resume=True)


class Stranger:
    """What a checkpoint of another program may hold."""


def test_a_training_does_not_resume_from_objects_that_were_not_read(tmp_path: Path) -> None:
    pair = Pair()
    content = {"model": pair.student.state_dict(), "distill": pair.methods.state_dict()}
    torch.save({**content, "trainer": {"value": Stranger()}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointFileError, match=r"Python objects in distill, trainer \(.*Stranger\)"):
        Checkpointer(pair, trainer=Counter()).load(str(tmp_path / "x.pth"))


@pytest.mark.parametrize("state", [None, [1], {}, "text"])
def test_a_damaged_part_of_a_training_is_named(tmp_path: Path, state: Any) -> None:
    pair = Pair()
    content = {"model": pair.student.state_dict(), "distill": pair.methods.state_dict(), "trainer": state}
    save_file(content, tmp_path / "x.pth")
    with pytest.raises(
        CheckpointFileError, match=r"x\.pth: its trainer cannot be restored \((Key|Type)Error"
    ):
        Checkpointer(pair, trainer=Counter()).load(str(tmp_path / "x.pth"))
    save_file({**content, "distill": state or 1}, tmp_path / "x.pth")
    with pytest.raises(CheckpointFileError, match=r"x\.pth: its distill is no state dict"):
        Checkpointer(pair, trainer=Counter()).load(str(tmp_path / "x.pth"))


@pytest.mark.parametrize("classes", ["Car", [1, 2], {"Car": 0}])
def test_damaged_classes_are_named(tmp_path: Path, classes: Any) -> None:
    model = nn.Linear(2, 2)
    torch.save({"model": model.state_dict(), "classes": classes}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="expected a list of names"):
        Checkpointer(model, classes=("Car",)).load(str(tmp_path / "x.pth"), checkpointables=[])


def test_training_does_not_resume_from_the_best_model(tmp_path: Path) -> None:
    pair, path = saved(tmp_path)
    Checkpointer(pair, str(tmp_path), tag_last=False, trainer=Counter()).save("model_best", iteration=9)
    assert (tmp_path / "model_best.pth").is_file()
    assert Checkpointer(pair, str(tmp_path)).get_checkpoint_file() == path


def test_ddp_is_unwrapped(tmp_path: Path) -> None:
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    pair = Pair()
    Checkpointer(DistributedDataParallel(pair), str(tmp_path)).save("ddp")
    dist.destroy_process_group()
    assert set(load_file(tmp_path / "ddp.pth")["model"]) == {"weight", "bias"}


def test_other_processes_do_not_write(tmp_path: Path) -> None:
    Checkpointer(Pair(), str(tmp_path), save_to_disk=False).save("x")
    assert names_in(tmp_path) == []


def test_periodic_checkpointer_keeps_the_newest_and_the_final(tmp_path: Path) -> None:
    periodic = PeriodicCheckpointer(Checkpointer(Pair(), str(tmp_path)), 2, max_iter=7, max_to_keep=2)
    for iteration in range(7):
        periodic.step(iteration)
    assert names_in(tmp_path) == [
        "last_checkpoint",
        "model_0000003.pth",
        "model_0000005.pth",
        "model_final.pth",
    ]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_weights_of_other_classes_are_refused(tmp_path):
    model = nn.Linear(2, 2)
    Checkpointer(model, str(tmp_path), classes=("Car", "Cyclist")).save("model")
    path = str(tmp_path / "model.pth")
    Checkpointer(model, classes=("Car", "Cyclist")).load(path, checkpointables=[])
    Checkpointer(model).load(path, checkpointables=[])  # nobody knows the classes
    with pytest.raises(
        ValueError, match=r"trained with the classes Car, Cyclist, in this order.*Cyclist, Car"
    ):
        Checkpointer(model, classes=("Cyclist", "Car")).load(path, checkpointables=[])


@pytest.mark.parametrize(
    ("meta", "place"),
    [
        ({"CLASSES": ("Car", "Cyclist")}, "meta.CLASSES"),
        ({"dataset_meta": {"classes": ["Car", "Cyclist"]}}, ""),
    ],
)
def test_classes_that_other_frameworks_state_are_compared(tmp_path: Path, meta: Any, place: str) -> None:
    model, path = nn.Linear(2, 2), str(tmp_path / "x.pth")
    torch.save({"model": model.state_dict(), "meta": meta}, path)
    Checkpointer(model, classes=("Car", "Cyclist")).load(path, checkpointables=[])
    Checkpointer(model, fixed_classes=("Car", "Cyclist")).load(path, checkpointables=[])
    message = rf"x\.pth \({place or 'meta.dataset_meta.classes'}\) was trained with the classes Car, Cyclist"
    with pytest.raises(ValueError, match=message):
        Checkpointer(model, classes=("Cyclist", "Car")).load(path, checkpointables=[])
    with pytest.raises(ValueError, match=f"{message}.* fixes its own"):
        Checkpointer(model, fixed_classes=("Cyclist", "Car")).load(path, checkpointables=[])


def test_what_a_trainer_keeps_under_such_a_name_is_not_compared(tmp_path: Path) -> None:
    counter = Counter(7)
    Checkpointer(nn.Linear(1, 1), str(tmp_path), classes=("Car",), trainer=counter).save("x", iteration=3)
    content = load_file(tmp_path / "x.pth")
    content["trainer"] = {"hooks": {"mine": {"class_names": 5}}}
    save_file(content, tmp_path / "x.pth")
    Checkpointer(nn.Linear(1, 1), classes=("Car",)).load(str(tmp_path / "x.pth"), checkpointables=[])
