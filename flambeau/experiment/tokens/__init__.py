"""Models of tokens and token grids that decoding is measured on."""
