"""Fewer bits and fewer numbers: schemes that quantise an array, masks that prune one, and what either costs."""
