"""One network as numbers: layouts, roles, architectures, symmetries, initialisation, distances."""
