"""Sharing models, run from a checkout: ``python -m hub export --checkpoint FILE --out FOLDER``."""
