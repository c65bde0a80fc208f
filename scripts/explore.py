"""Explore a zoo, and its generator, in the browser.

    python -m scripts.explore zoo=PATH [pipeline=PATH] [port=8765] [open_browser=true]

The zoo as a table to filter and to sort; trajectories; a plane of its networks; two networks side by side; a run over
its training; with a generator, networks on request, measured and compared with their nearest run, to download. Needs
the extra `app`. Inputs: a zoo, in a folder or at an address; optionally the folder of a generator trained on it.
Outputs: none but downloads. Only this machine is answered, and nothing is asked of any other. It runs until Ctrl-C.
"""

from __future__ import annotations

import webbrowser
from threading import Timer

from omegaconf import DictConfig

from .cli import console, run


def main(config: DictConfig) -> None:
    try:
        import uvicorn

        from .explorer.app import HOST, make_app
    except ModuleNotFoundError as error:
        raise ImportError(f"the explorer needs {error.name}: pip install 'weightfoundry[app]'") from error
    from diffusers.utils.logging import disable_progress_bar

    from generator import ParameterPipeline
    from zoo.devices import resolve_device
    from zoo.storage.zoo import Zoo

    disable_progress_bar()  # of loading three small files
    pipe = None
    if config.pipeline is not None:
        pipe = ParameterPipeline.from_pretrained(str(config.pipeline)).to(resolve_device(config.device))
    app = make_app(Zoo.open(str(config.zoo)), pipe)
    address = f"http://{HOST}:{config.port}/"
    console.print(f"exploring {config.zoo} at {address}; Ctrl-C ends it", soft_wrap=True)
    if config.open_browser:
        Timer(1, webbrowser.open, (address,)).start()
    uvicorn.run(app, host=HOST, port=config.port, log_level="warning")


if __name__ == "__main__":
    run(main, "explore")
