"""lightning_switchkd: distil a large vision-language model into a small one (Switch-KD, arXiv 2604.14629)."""

__version__ = "0.1.0"
