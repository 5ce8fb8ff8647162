"""Linear layers as a model has them: quantised, offloaded, fused; their bits; their fingerprint."""
