"""The package pocket-tts of PyPI: head, language model and codec on its own modules and state."""
