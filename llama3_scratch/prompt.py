"""The prompt that runs through the notebooks, from one place: set LLAMA3_PROMPT to read them on a text of your own."""

import os

PROMPT = "the answer to the ultimate question of life, the universe, and everything is "
ENVIRONMENT_VARIABLE = "LLAMA3_PROMPT"


def read_prompt() -> str:
    """The reader's own prompt, if LLAMA3_PROMPT holds one, else the question that opened the first notebook."""
    return os.environ.get(ENVIRONMENT_VARIABLE) or PROMPT
