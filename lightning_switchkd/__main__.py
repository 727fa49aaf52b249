"""``python -m lightning_switchkd``."""

from lightning_switchkd.cli import main

if __name__ == "__main__":
    main()
