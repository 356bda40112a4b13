import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevkd2.data.samplers import SceneSampler, TrainingSampler


def take(sampler, n):
    return list(itertools.islice(iter(sampler), n))


def test_an_epoch_sees_every_frame_once():
    frames = [frame for frame, _ in take(TrainingSampler(7, seed=0), 21)]
    for epoch in range(3):
        assert sorted(frames[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert frames[:7] != frames[7:14]
    assert frames != [frame for frame, _ in take(TrainingSampler(7, seed=1), 21)]


@given(size=st.integers(1, 12), world=st.integers(1, 4), start=st.integers(0, 30))
@settings(max_examples=30, deadline=None)
def test_ranks_share_one_stream_wherever_it_starts(size, world, start):
    whole = take(TrainingSampler(size, seed=3), start + 24)
    dealt = [take(TrainingSampler(size, 3, rank, world, start), 24 // world) for rank in range(world)]
    merged = [item for group in zip(*dealt, strict=True) for item in group]
    assert merged == whole[start : start + len(merged)]


def test_empty_training_set_is_an_error():
    with pytest.raises(ValueError, match="no frames"):
        TrainingSampler(0, seed=0)


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12), world=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_ranks_get_contiguous_whole_scenes(lengths, world):
    stops = list(itertools.accumulate(lengths))
    scenes = [range(stop - length, stop) for stop, length in zip(stops, lengths, strict=True)]
    shares = [[frame for frame, _ in SceneSampler(scenes, rank, world)] for rank in range(world)]
    assert [frame for share in shares for frame in share] == list(range(stops[-1]))
    for share in shares:
        assert all(frame in share for scene in scenes if scene.start in share for frame in scene)


def test_equal_scenes_are_shared_evenly():
    scenes = [range(40 * i, 40 * i + 40) for i in range(8)]
    assert [len(SceneSampler(scenes, rank, 4)) for rank in range(4)] == [80] * 4
