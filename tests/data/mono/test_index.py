import pytest

from bevkd2.data.mono.index import JoinedIndex, MonoRecord


class Numbered:
    """Images named after a split, in groups of `group`."""

    def __init__(self, split, size, group):
        self.split, self.size, self.group = split, size, group

    def __len__(self):
        return self.size

    def record(self, i):
        assert 0 <= i < self.size
        return MonoRecord(f"{self.split}{i}", "", 1, 1, None)

    def image_size(self, i):
        return i, i + 1

    def groups(self):
        return [range(i, i + self.group) for i in range(0, self.size, self.group)]


def test_joined_splits_follow_one_another():
    joined = JoinedIndex([Numbered("a", 4, 2), Numbered("b", 3, 3), Numbered("c", 2, 1)])
    names = [joined.record(i).image_id for i in range(len(joined))]
    assert names == ["a0", "a1", "a2", "a3", "b0", "b1", "b2", "c0", "c1"]
    assert joined.image_size(5) == (1, 2)
    assert joined.groups() == [range(2), range(2, 4), range(4, 7), range(7, 8), range(8, 9)]


def test_past_the_end():
    with pytest.raises(IndexError):
        JoinedIndex([Numbered("a", 4, 2)]).record(4)
