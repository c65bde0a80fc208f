"""Commands: each composes a Hydra config, calls one package and writes its outputs."""
