"""The command line."""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # data loader workers fork after the tokenizer has run
