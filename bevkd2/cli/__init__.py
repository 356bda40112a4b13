"""Command-line tools; each module has a ``main`` function, which the scripts in ``tools/`` call."""
