import pytest

from bevkd2.d2 import DatasetCatalog, MetadataCatalog

NAME = "bevkd2_test_catalog"


@pytest.fixture(autouse=True)
def clean():
    yield
    for catalog in (DatasetCatalog, MetadataCatalog):
        if NAME in catalog.list():
            catalog.remove(NAME)


def test_dataset_is_loaded_by_name():
    DatasetCatalog.register(NAME, lambda: [{"sample_token": "a"}])
    assert DatasetCatalog.get(NAME) == [{"sample_token": "a"}]
    assert NAME in DatasetCatalog.list()
    assert NAME in str(DatasetCatalog)


def test_a_name_is_registered_once_and_can_be_removed():
    DatasetCatalog.register(NAME, list)
    with pytest.raises(AssertionError, match="already registered"):
        DatasetCatalog.register(NAME, list)
    DatasetCatalog.remove(NAME)
    assert NAME not in DatasetCatalog.list()


def test_dataset_must_be_a_function():
    with pytest.raises(AssertionError, match="function"):
        DatasetCatalog.register(NAME, [])


def test_unknown_dataset():
    with pytest.raises(KeyError, match=f"'{NAME}' is not registered"):
        DatasetCatalog.get(NAME)


def test_metadata_is_one_object_per_name():
    MetadataCatalog.get(NAME).thing_classes = ["car"]
    assert MetadataCatalog.get(NAME).thing_classes == ["car"]
    assert MetadataCatalog.get(NAME).name == NAME
    assert MetadataCatalog.get(NAME).as_dict() == {"name": NAME, "thing_classes": ["car"]}


def test_metadata_cannot_change():
    metadata = MetadataCatalog.get(NAME).set(thing_classes=["car"], evaluator_type="nuscenes")
    metadata.thing_classes = ["car"]
    with pytest.raises(AssertionError, match="cannot be set"):
        metadata.thing_classes = ["truck"]
    assert metadata.thing_classes == ["car"]
    assert metadata.evaluator_type == "nuscenes"


def test_missing_metadata():
    metadata = MetadataCatalog.get(NAME)
    assert metadata.get("colors") is None
    assert metadata.get("colors", 3) == 3
    with pytest.raises(AttributeError, match="'colors' does not exist"):
        _ = metadata.colors
