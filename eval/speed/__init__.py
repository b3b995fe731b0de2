"""How fast models are, and what they cost."""
