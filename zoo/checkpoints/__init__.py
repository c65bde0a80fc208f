"""Checkpoint files of single networks, read as any tool writes them and written as most tools read them."""
