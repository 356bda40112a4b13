"""nuScenes for monocular detectors: every camera image is a sample of its own."""
