"""Erasures on a live pipeline, with the verbs of diffusers."""
