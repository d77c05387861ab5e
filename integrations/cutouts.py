"""Old name of `vqgan.cutouts`, for scripts that import it."""

from clipag_plugins.integrations.vqgan.cutouts import AUGMENTS, Cutouts

__all__ = ["AUGMENTS", "Cutouts"]
