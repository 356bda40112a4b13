"""nuScenes for multi-view detectors: index, mapper and registration."""
