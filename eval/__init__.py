"""Measuring models, run from a checkout: ``python -m eval accuracy --model NAME --data FOLDER``."""
