import pytest

from bevkd2.config import class_names, get_cfg, stored_classes
from bevkd2.config.data_formats import DATA_FORMAT_REGISTRY
from bevkd2.d2 import build_model


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
            r"CLASSES has 'DontCare', expected names of kitti: Car, Van,",
        ),
        ("kitti", ("car",), r"DATASETS\.CLASSES has 'car'"),
        ("nuscenes_mono", ("car", "bus", "car"), "expected every name once"),
        ("nuscenes", ("car",), r"CLASSES is \['car'\], but the classes of format 'nuscenes' are fixed: car"),
        ("waymo", (), r"DATASETS\.FORMAT is 'waymo', expected one of .*kitti.*--import PACKAGE"),
    ],
)
def test_wrong_classes_are_refused(form, classes, message):
    with pytest.raises(ValueError, match=message):
        class_names(mono_cfg(form, classes))


def test_classes_are_stored_where_their_order_is_free():
    assert stored_classes(mono_cfg("nuscenes")) == ()
    assert stored_classes(mono_cfg("kitti", ("Van", "Car"))) == ("Van", "Car")


@pytest.mark.parametrize("architecture", ["FCOS3D", "PGD", "SMOKE"])
def test_a_monocular_detector_refuses_frames_of_several_cameras(architecture):
    assert len(class_names(mono_cfg("nuscenes_mono"), single_images=True)) == 10
    cfg = mono_cfg("nuscenes")
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = architecture, "cpu"
    message = r"FORMAT is 'nuscenes', expected one of .*kitti.*: monocular models read single images"
    with pytest.raises(ValueError, match=message):
        build_model(cfg)


def test_a_multi_view_detector_refuses_single_images():
    assert len(class_names(mono_cfg("nuscenes"), single_images=False)) == 10
    cfg = mono_cfg("kitti")
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "BEVFormer", "cpu"
    message = r"FORMAT is 'kitti', expected one of .*nuscenes.*: multi-view models read frames of several"
    with pytest.raises(ValueError, match=message):
        build_model(cfg)


def test_a_name_is_registered_once():
    kind = type(DATA_FORMAT_REGISTRY.get("kitti"))
    with pytest.raises(ValueError, match=r"data format 'kitti' of .*KittiFormat is registered already, by"):
        DATA_FORMAT_REGISTRY.register()(kind)
