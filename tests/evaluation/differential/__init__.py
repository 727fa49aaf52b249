"""Scores of the references next to ours, on generated answers. Run ``compare.py``. The tests do not collect it."""
