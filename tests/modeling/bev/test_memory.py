import torch
from torch import nn

from bevkd2.modeling.bev.memory import (
    SceneMemory,
    evaluating,
    rows_with_history,
    select_rows,
    split_by_time,
    update_rows,
)
from bevkd2.modeling.knowledge import TemporalState


def state(*scenes: tuple[str, int]) -> TemporalState:
    tokens, times = [scene for scene, _ in scenes], [time for _, time in scenes]
    bev = torch.tensor([float(time) for time in times])[:, None, None].expand(-1, 2, 3)
    return TemporalState(bev, torch.zeros(len(scenes), 18, dtype=torch.float64), tokens, times)


def test_history_needs_the_same_scene_and_a_later_time():
    past = state(("a", 1), ("b", 5), ("c", 7), ("", 0))
    assert rows_with_history(past, ["a", "x", "c", "d"], [2, 6, 7, 1]) == [True, False, False, False]
    assert rows_with_history(None, ["a"], [1]) == [False]


def test_samples_with_shorter_history_have_no_earlier_state():
    first = update_rows(None, state(("a", 1)), [1], batch_size=3)
    assert first.scene_tokens == ["", "a", ""]
    second = update_rows(first, state(("b", 4), ("a", 2)), [0, 1], batch_size=3)
    assert second.scene_tokens == ["b", "a", ""]
    assert second.bev_embed[:, 0, 0].tolist() == [4.0, 2.0, 0.0]
    assert first.bev_embed[:, 0, 0].tolist() == [0.0, 1.0, 0.0]  # not changed in place
    assert select_rows(second, [1, 0]).timestamps == [2, 4]


def test_temporal_memory_is_kept_per_scene():
    memory = SceneMemory()
    memory.store(state(("a", 1), ("b", 2)))
    recalled = memory.recall(["b", "new", "a"])
    assert recalled.scene_tokens == ["b", "", "a"]
    memory.forget_others(["a"])
    assert memory.recall(["b"]) is None
    assert memory.recall(["a"]).timestamps == [1]


def test_frames_of_a_scene_come_one_after_another():
    assert split_by_time(["a", "b", "a", "a", "b"]) == [[0, 1], [2, 4], [3]]
    assert split_by_time([]) == []


def test_evaluating_restores_each_modules_mode():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))
    model.train()
    model[1].eval()
    with evaluating(model):
        assert not model[0].training
    assert [model.training, model[0].training, model[1].training] == [True, True, False]
