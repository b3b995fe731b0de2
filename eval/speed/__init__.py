"""How fast models and layers are, beside what else can do the same."""
