"""Commands: each composes a Hydra config, calls one package and writes its outputs.

Small networks are thousands of short parallel regions a second, at whose ends threads wait for each other. By default
they spin for milliseconds; where another process has taken the core of one, all wait for its next time slice, and a
build takes ten times as long. Here they spin for some ten microseconds and then sleep, which must be settled before
torch is loaded (`scripts.bench.bench_busy` measures it).
"""

import os

if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
    os.environ["GOMP_SPINCOUNT"] = "1000"
