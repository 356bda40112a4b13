"""Synthetic world in nuScenes layout."""
