"""Training with PyTorch Lightning, from a checkout: ``python -m train fit --config FILE``."""
