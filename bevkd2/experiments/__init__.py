"""Experiments: rows of configs times seeds, trained in processes of their own, compared pair by pair."""
