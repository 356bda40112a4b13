"""Limits that tests share."""

PROGRAM_SECONDS = 900
"""After which a program that a test started is ended; long, since other work may slow the machine down."""
