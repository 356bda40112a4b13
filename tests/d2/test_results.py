import pytest

from bevkd2.d2 import CfgNode, flatten_results_dict, print_csv_format, verify_results


def test_copy_and_paste_lines(engine_log):
    print_csv_format({"bbox": {"NDS": 0.51234567, "mAP": 41, "AP-car": 0.1}, "seconds": 3})
    assert engine_log == [
        "copypaste: Task: bbox",
        "copypaste: NDS,mAP",
        "copypaste: 0.5123,41.0000",
        "copypaste: seconds=3",
    ]


def test_flatten():
    nested = {"bbox": {"NDS": 0.5, "car": {"AP": 0.2}}, "seconds": 3}
    assert flatten_results_dict(nested) == {"bbox/NDS": 0.5, "bbox/car/AP": 0.2, "seconds": 3}


def cfg(*expected):
    return CfgNode({"TEST": {"EXPECTED_RESULTS": list(expected)}})


def test_expected_results(engine_log):
    results = {"bbox": {"NDS": 0.5}}
    assert verify_results(cfg(), results) is True
    assert engine_log == []
    assert verify_results(cfg(["bbox", "NDS", 0.45, 0.06]), results) is True
    assert engine_log == ["Results verification passed."]


@pytest.mark.parametrize("row", [["bbox", "NDS", 0.4, 0.05], ["bbox", "mAP", 0.5, 1.0]])
def test_missed_results_end_the_program(row, engine_log):
    with pytest.raises(SystemExit) as end:
        verify_results(cfg(row), {"bbox": {"NDS": 0.5}})
    assert end.value.code == 1
    assert engine_log[0] == "Result verification failed!"


def test_result_that_is_not_finite_is_missed():
    with pytest.raises(SystemExit):
        verify_results(cfg(["bbox", "NDS", 0.5, 1.0]), {"bbox": {"NDS": float("nan")}})
