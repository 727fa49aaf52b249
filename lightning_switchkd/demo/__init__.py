"""Demo data sets: digits, easy-VQA and emoji scenes, written to disk as LLaVA data with a processor."""
