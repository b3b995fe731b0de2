"""Training with PyTorch Lightning: ``python -m train fit --config FILE``."""
