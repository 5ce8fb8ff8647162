"""Weights and words of the pictures world; `diffusers_erasepro.pictures` loads them."""
