"""Necks: what stands between the image backbone and the detector."""
