"""Keep pytest away: these modules need checkouts of the references."""

collect_ignore_glob = ["*.py", "*/*.py"]
