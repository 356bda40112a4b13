"""KITTI for monocular detectors: index and registration."""
