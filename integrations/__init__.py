"""The tools that CLIPAG plugs into, each as a canvas under the one loop, and shims for scripts."""
