"""Verbs that chain the rooms: each one page long."""
