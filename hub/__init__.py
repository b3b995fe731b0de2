"""Sharing models, run from a checkout: ``python -m hub export --checkpoint FILE --out FOLDER``."""

INSTALL = "pip install ."  # in a clone; what README.md and the model cards print
