"""The mathematics: thin factors and the constrained solve. Tensors in, tensors out."""
