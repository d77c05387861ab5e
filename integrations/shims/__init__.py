"""Run CLIP-guided scripts of 2021 and 2022 unchanged: call `install()`, then run them."""

from clipag_plugins.integrations.shims.redirect import install, uninstall

__all__ = ["install", "uninstall"]
