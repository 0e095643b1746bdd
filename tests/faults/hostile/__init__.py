"""Hostile input for everything that parses or listens: seeded, for a given time each.

``python -m tests.faults.hostile --seconds 60 [--target control] [--seed 1]``
"""
