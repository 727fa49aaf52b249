"""Estimates of time and memory, and dry runs without a download."""
