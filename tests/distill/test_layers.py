import pytest
from hypothesis import given
from hypothesis import strategies as st

from bevkd2.distill.layers import map_layers


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        (3, 3, [(0, 0), (1, 1), (2, 2)]),
        (3, 6, [(0, 1), (1, 3), (2, 5)]),
        (1, 6, [(0, 5)]),
        (6, 3, [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2)]),
    ],
)
def test_layers_are_mapped_evenly_and_the_last_to_the_last(student, teacher, pairs):
    assert map_layers(student, teacher) == pairs


@given(st.integers(1, 12), st.integers(1, 12))
def test_every_student_layer_is_mapped_in_order(student, teacher):
    pairs = map_layers(student, teacher)
    assert [i for i, _ in pairs] == list(range(student))
    assert pairs[-1] == (student - 1, teacher - 1)
    targets = [j for _, j in pairs]
    assert targets == sorted(targets) and all(0 <= j < teacher for j in targets)


def test_an_explicit_layer_map_has_priority():
    assert map_layers(2, 6, [[0, 5], [1, 0]]) == [(0, 5), (1, 0)]


@pytest.mark.parametrize("pair", [[2, 0], [0, 6], [-1, 0], [0]])
def test_an_explicit_map_that_names_no_layer_is_an_error(pair):
    with pytest.raises(ValueError, match=r"LAYER_MAP.*0\.\.1.*0\.\.5"):
        map_layers(2, 6, [pair])
