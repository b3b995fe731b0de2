"""Measuring models: ``python -m eval accuracy --model NAME --data FOLDER``."""
