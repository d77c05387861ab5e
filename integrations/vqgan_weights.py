"""Old name of `vqgan.weights`, for scripts that import it."""

from clipag_plugins.integrations.vqgan.weights import VQGANS, load_vqgan, pull_vqgan, read_vqgan

__all__ = ["VQGANS", "load_vqgan", "pull_vqgan", "read_vqgan"]
