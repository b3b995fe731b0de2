"""Audio tagging: what a model finds in sounds, and how well."""
