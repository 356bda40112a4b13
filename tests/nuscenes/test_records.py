import math

import pytest

from bevkd2.nuscenes import records
from bevkd2.nuscenes.records import PackedRecords


@pytest.mark.parametrize("unpacked", [1, 4096])
def test_records_are_those_that_were_added(monkeypatch, unpacked):
    monkeypatch.setattr(records, "_UNPACKED", unpacked)
    rows = [
        {"token": "a\ud800", "value": 2**70, "list": [1.5, None, {"k": [True]}]},
        {"token": "", "value": -0.0, "list": []},
        {"token": "c", "value": math.inf, "list": [[]]},
    ]
    packed = PackedRecords(("token", "value", "list"))
    for row in rows:
        packed.append({**row, "left out": 1})
    assert (
        len(packed) == 3
        and list(packed) == rows
        and [packed[i] for i in (2, 0, 1, 1)] == [rows[i] for i in (2, 0, 1, 1)]
    )
    packed.add_field("more", "xyz")
    assert packed[1] == {**rows[1], "more": "y"}
    for place in (3, -1):
        with pytest.raises(IndexError, match=f"record {place} of 3"):
            packed[place]


def test_lists_that_marshal_cannot_hold_are_kept():
    deep = []
    for _ in range(5000):
        deep = [deep]
    packed = PackedRecords(("token", "list"))
    packed.append({"token": "a", "list": deep})
    packed.append({"token": "b", "list": []})
    assert packed[0]["list"] is deep and packed[1] == {"token": "b", "list": []}
