"""Networks as normalised tokens, and back."""
