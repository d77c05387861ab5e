"""The vector engine: paths, paints, a differentiable renderer in plain torch, and SVG."""
