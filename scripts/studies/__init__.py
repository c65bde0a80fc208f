"""Larger comparisons, and the claims that the project makes of itself."""
