"""Linear layers as they are found: quantised, offloaded, fused; where their bits live; their fingerprint."""
