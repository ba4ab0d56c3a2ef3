"""Representations of particle jets, learned without labels, that hold on real data."""

__version__ = "0.1.0"
