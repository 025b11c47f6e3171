"""Adapters to other tools: one file and one extra each, imported by nobody who does not ask for it."""
