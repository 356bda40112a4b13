"""Limits that tests share."""

PROGRAM_SECONDS = 900
"""After which a program that a test started is ended. Long: a busy machine is slow, which is no failure."""
