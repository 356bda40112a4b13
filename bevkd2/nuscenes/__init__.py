"""nuScenes without torch: names and layout of the data set, and its tables."""

from bevkd2.nuscenes.layout import CLASS_NAMES

__all__ = ["CLASS_NAMES"]
