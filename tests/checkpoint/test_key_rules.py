"""Rules that rename keys, in both directions."""

import pytest
import torch

from bevkd2.checkpoint.key_rules import KeyRules

RULES = KeyRules(
    "Toy",
    [("a.{i}.special", "special.{i}"), ("a.{i}.{rest}", "b.{rest}.{i}")],
    {"anchor": "computed here"},
)
ONE = torch.ones(1)


def test_the_first_rule_that_fits_counts():
    report = RULES.from_published({"a.1.special": ONE, "a.2.x.y": ONE, "anchor": ONE})
    assert report.mapped == {"a.1.special": "special.1", "a.2.x.y": "b.x.y.2"}
    assert report.dropped == {"anchor": "computed here"}
    assert set(RULES.to_published(report.state)) == {"a.1.special", "a.2.x.y"}


def test_numbered_keys_need_digits():
    with pytest.raises(
        KeyError, match=r"1 key has no place in a published Toy: a\.b\.x; name the architecture"
    ):
        RULES.from_published({"a.b.x": ONE})


def test_many_unknown_keys_are_counted():
    with pytest.raises(KeyError, match=r"12 keys .* and 2 more"):
        RULES.to_published({f"c{i}": ONE for i in range(12)})


def test_missing_counters_and_wrappers_are_filled_in_and_taken_off():
    rules = KeyRules("Toy", [("published.{rest}", "{rest}")])
    norm = torch.nn.BatchNorm1d(2).state_dict()
    published = {f"module.published._orig_mod.{k}": v for k, v in norm.items() if k != "num_batches_tracked"}
    report = rules.from_published(published).check(norm, "file")
    assert set(report.state) == set(norm) and report.state["num_batches_tracked"] == 0


def test_two_keys_for_one_tensor_are_an_error():
    with pytest.raises(ValueError, match=r"a\.1\.x and module\.a\.1\.x are both b\.x\.1"):
        RULES.from_published({"a.1.x": ONE, "module.a.1.x": ONE})
