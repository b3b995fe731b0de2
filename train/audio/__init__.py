"""Audio tagging (arXiv:2309.13972): which of many classes is heard in a sound."""
