import pytest

from bevkd2.config import class_names, get_cfg


def mono_cfg(form: str = "kitti", classes: tuple[str, ...] = ()):
    cfg = get_cfg()
    cfg.DATASETS.FORMAT = form
    cfg.DATASETS.CLASSES = list(classes)
    return cfg


def test_defaults_are_the_published_orders():
    assert class_names(mono_cfg()) == ("Pedestrian", "Cyclist", "Car")
    names = class_names(mono_cfg("nuscenes_mono"))
    assert len(names) == 10 and names[:3] == ("car", "truck", "trailer") and names[-1] == "barrier"


def test_a_choice_of_classes_keeps_its_order():
    assert class_names(mono_cfg(classes=("Van", "Car"))) == ("Van", "Car")


@pytest.mark.parametrize(
    ("form", "classes", "message"),
    [
        (
            "kitti",
            ("Car", "DontCare"),
            r"CLASSES has 'DontCare', expected names of kitti: Pedestrian,",
        ),
        ("kitti", ("car",), r"DATASETS\.CLASSES has 'car'"),
        ("nuscenes_mono", ("car", "bus", "car"), "expected every name once"),
        ("nuscenes", (), r"DATASETS\.FORMAT is 'nuscenes', expected one of kitti, nuscenes_mono"),
    ],
)
def test_wrong_classes_are_refused(form, classes, message):
    with pytest.raises(ValueError, match=message):
        class_names(mono_cfg(form, classes))
