"""Figures of a multi-view data format whose classes are not those of nuScenes."""

import dataclasses

import numpy as np
import pytest
import torch

from bevkd2.config import load_config
from bevkd2.config.data_formats import DATA_FORMAT_REGISTRY
from bevkd2.d2 import build_model
from bevkd2.data import NuScenesFormat, build_test_loader, data_format
from bevkd2.nuscenes.layout import CLASS_NAMES
from bevkd2.visualization import class_palette
from bevkd2.visualization.bev_view import legend
from tests.visualization.pictures import contains

CLASSES = ("forklift", "pallet", "worker")


@dataclasses.dataclass
class RelabelledMapper:
    """Maps the labels of nuScenes to the three classes of the format."""

    mapper: object

    def __call__(self, *args, **kwargs):
        sample = self.mapper(*args, **kwargs)
        return {**sample, "labels": sample["labels"] % len(CLASSES)}

    def cached_shape(self, index, i):
        return self.mapper.cached_shape(index, i)


class WarehouseFormat(NuScenesFormat):
    name = "warehouse"
    default_classes = known_classes = CLASSES

    def mapper(self, cfg, *, is_train):
        return RelabelledMapper(super().mapper(cfg, is_train=is_train))


@pytest.fixture
def cfg(monkeypatch, student_config_file, world_options):
    monkeypatch.setitem(DATA_FORMAT_REGISTRY._formats, "warehouse", WarehouseFormat())
    return load_config(str(student_config_file), [*world_options, "DATASETS.FORMAT", "warehouse"])


def test_figures_have_the_classes_of_the_data_format(cfg):
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    dataset = build_test_loader(cfg, cfg.DATASETS.TEST[0]).dataset
    frames = data_format(cfg).figures(cfg, dataset, {"m": model}, num=1, score_threshold=0.999)
    (_, pictures), *_ = frames
    picture, palette = pictures["detections_m"], class_palette(len(CLASSES))
    assert contains(picture, legend(CLASSES, palette, 500))
    assert not contains(picture, legend(CLASS_NAMES, class_palette(len(CLASS_NAMES)), 500))
    labels = np.unique(dataset[(2, 0)]["labels"])
    drawn = [k for k, color in enumerate(palette) if (picture == color).all(axis=-1).sum() > 100]
    assert len(labels) > 1
    assert drawn == labels.tolist()
