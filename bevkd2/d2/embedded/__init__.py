"""The subset of Detectron2 that bevkd2 needs, written anew on fvcore and iopath.

Names, signatures, file formats and log lines are Detectron2's, and so are the names of the loggers
(``detectron2.engine.train_loop``, ...): what is set up for, or reads, the one works with the other. Where
Detectron2 raises an AssertionError for a wrong argument, so does this. Import from ``bevkd2.d2``, which
chooses. Where it mends a fault of Detectron2's, tests/d2/test_mends.py says which.
"""
