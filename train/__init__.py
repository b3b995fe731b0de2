"""Training with PyTorch Lightning, run from a checkout: ``python -m train fit --config configs/digits.yaml``."""
