"""The recurrent diffusion transformer, and what it is given to see."""
