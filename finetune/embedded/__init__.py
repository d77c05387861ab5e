"""How the weights inside the package are made, from openly licensed pictures to the files."""
