"""Measure how badly federated learning can be poisoned, and what stops it."""
