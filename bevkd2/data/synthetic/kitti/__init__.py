"""Synthetic world in KITTI layout."""
