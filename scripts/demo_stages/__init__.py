"""The stages of the demo, one a file, and what runs them."""
