"""Priors P(z_i | y): image embeddings drawn for a caption, as unCLIP's (Ramesh et al., 2022)."""
