"""Segmentation and detection on the backbones of the zoo."""
