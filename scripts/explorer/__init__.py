"""The explorer: a zoo and its generator in the browser, served from this machine to this machine."""
