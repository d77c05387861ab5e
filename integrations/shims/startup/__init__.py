"""A folder for PYTHONPATH, which holds nothing but `sitecustomize`."""
