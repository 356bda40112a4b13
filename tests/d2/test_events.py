import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bevkd2.d2 import EventStorage, get_event_storage, has_event_storage


def test_storages_nest():
    assert not has_event_storage()
    with pytest.raises(AssertionError, match="EventStorage"):
        get_event_storage()
    with EventStorage() as outer:
        assert get_event_storage() is outer
        with EventStorage() as inner:
            assert get_event_storage() is inner
        assert get_event_storage() is outer
    assert not has_event_storage()


def test_latest_and_history():
    storage = EventStorage(start_iter=7)
    storage.put_scalar("loss", torch.tensor(2.0))
    storage.step()
    storage.put_scalars(loss=4, lr=0.5)
    assert (storage.iter, storage.iteration) == (8, 8)
    assert storage.latest() == {"loss": (4.0, 8), "lr": (0.5, 8)}
    assert storage.history("loss").values() == [(2.0, 7), (4.0, 8)]
    assert set(storage.histories()) == {"loss", "lr"}
    with pytest.raises(KeyError, match="nothing"):
        storage.history("nothing")


def test_explicit_iteration():
    storage = EventStorage()
    storage.iter = 5
    storage.put_scalars(cur_iter=3, a=1.0)
    assert storage.latest() == {"a": (1.0, 3)}


def test_smoothing():
    storage = EventStorage()
    for storage.iter, value in enumerate([1.0, 9.0, 2.0, 4.0]):
        storage.put_scalar("noisy", value)
        storage.put_scalar("exact", value, smoothing_hint=False)
    assert storage.latest_with_smoothing_hint(3) == {"noisy": (4.0, 3), "exact": (4.0, 3)}
    assert storage.latest_with_smoothing_hint(20)["noisy"] == (3.0, 3)
    assert storage.smoothing_hints() == {"noisy": True, "exact": False}
    with pytest.raises(AssertionError, match="noisy was put with a different smoothing_hint"):
        storage.put_scalar("noisy", 1.0, smoothing_hint=False)


def test_window_is_in_iterations_not_in_numbers():
    storage = EventStorage()
    for storage.iter in (0, 10, 18, 19):
        storage.put_scalar("rare", storage.iter)
    assert [storage.count_samples("rare", size) for size in (1, 2, 10, 20)] == [1, 2, 3, 4]


@given(
    iterations=st.lists(st.integers(0, 60), min_size=1, max_size=30).map(sorted),
    window=st.integers(1, 70),
)
def test_count_is_that_of_the_last_window(iterations, window):
    storage = EventStorage()
    for storage.iter in iterations:
        storage.put_scalar("loss", 1.0)
    expected = sum(iteration > iterations[-1] - window for iteration in iterations)
    assert storage.count_samples("loss", window) == expected


def test_name_scope():
    storage = EventStorage()
    with storage.name_scope("teacher/"):
        storage.put_scalar("loss", 1.0)
    storage.put_scalar("loss", 2.0)
    assert storage.latest() == {"teacher/loss": (1.0, 0), "loss": (2.0, 0)}
