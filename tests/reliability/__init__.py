"""Proofs that trainings survive kills, faults and scaling; ``python -m tests.reliability`` runs them all."""
