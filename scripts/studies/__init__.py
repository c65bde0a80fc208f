"""Larger comparisons and the claims that the project makes of itself; what users need to judge their own is in the packages."""
