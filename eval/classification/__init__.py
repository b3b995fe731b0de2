"""How well a model classifies, also where images are corrupted, drawn, rare or taken anew."""
