"""Necks: what stands between the image body and the detector."""
