"""Old name of `clipstyler.content`, for scripts that import it."""

from clipag_plugins.integrations.clipstyler.content import ContentLoss, features_of, tower_features

__all__ = ["ContentLoss", "features_of", "tower_features"]
