"""Sharing models: ``python -m hub convert|export|card|publish|verify|download``."""

INSTALL = "pip install ."  # in a clone; what README.md and the model cards print


class HubError(RuntimeError):
    """What went wrong in one line: what was found, what was expected, and what to do."""
