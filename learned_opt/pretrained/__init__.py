"""Meta-parameters in files; the weights of the package and their cards lie beside this module."""
