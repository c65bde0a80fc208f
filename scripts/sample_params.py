"""Sample networks from a trained generator.

    python -m scripts.sample_params pipeline=out/generator prompt.loss=0.2 out=x.safetensors [start=y] [zoo=PATH]
    python -m scripts.sample_params pipeline=out/adapters examples=mine.npz out=x.safetensors
    python -m scripts.sample_params pipeline=out/words description="tell 3 and 5 from the rest" out=x.safetensors
    python -m scripts.sample_params pipeline=out/generator edit=y own_loss=0.5 prompt.loss=0.2 out=x.safetensors

Inputs: the folder of a trained generator; optionally a network to start from, or to edit, as safetensors with the names
of its state dict; optionally examples of the task, x.npz with `inputs` and perhaps `targets`, x.csv with a column
`target`, or x.txt. A generator that looks at what networks compute also needs a zoo of its task, as it was trained on.
Outputs: one safetensors file, or `x_0.safetensors`, `x_1.safetensors`, ... for several samples, with the names and
shapes that `load_state_dict` takes; `config.yaml` and `summary.json` in the folder x-sample. Typical run time: seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from .cli import console, run, save_run


def main(config: DictConfig) -> None:
    import torch
    from diffusers.utils.logging import disable_progress_bar
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    from generator import ParameterPipeline
    from generator.prompts.examples import load_examples
    from generator.training.tasks import task_of
    from zoo.devices import resolve_device
    from zoo.storage.zoo import Zoo

    out = Path(str(config.out)).absolute()
    if out.suffix != ".safetensors" or out.is_dir():
        raise ValueError(f"out must be a file x.safetensors, got {out}")
    prompt: dict[str, Any] = {str(name): value for name, value in config.prompt.items() if value is not None}
    if words := {name: value for name, value in prompt.items() if not isinstance(value, int | float)}:
        raise ValueError(f"prompts must be numbers, got {words}")
    if config.description is not None:
        prompt["description"] = str(config.description)
    if config.examples is not None:
        prompt["examples"] = load_examples(str(config.examples))
    networks: dict[str, Any] = {}
    for name in ("start", "edit"):
        try:
            networks[name] = None if config[name] is None else load_file(str(config[name]))
        except SafetensorError as error:
            raise ValueError(f"{config[name]} is not a safetensors file: {error}") from error
    disable_progress_bar()  # of loading three small files
    pipe = ParameterPipeline.from_pretrained(str(config.pipeline)).to(resolve_device(config.device))
    task = None if config.zoo is None else task_of(Zoo.open(str(config.zoo)))
    rng = torch.Generator().manual_seed(config.seed)
    if networks["edit"] is None:
        generated = pipe(
            networks["start"],
            prompt,
            num_samples=config.num_samples,
            best_of=config.best_of,
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            task_bits=None if config.task_bits is None else list(config.task_bits),
            task=task,
            generator=rng,
        )
    else:
        own = None if config.own_loss is None else {"loss": config.own_loss}
        generated = pipe.edit(
            networks["edit"], prompt, own_prompt=own, start=networks["start"], task=task, generator=rng
        )
    states = generated.state_dicts()
    paths = _numbered(out, len(states))
    for state, path in zip(states, paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous().cpu() for name, value in state.items()}, path)
        console.print(f"wrote {path}", soft_wrap=True)
    asked = prompt | ({} if config.examples is None else {"examples": str(config.examples)})
    save_run(out.with_name(f"{out.stem}-sample"), config, {"prompt": asked, "files": [path.name for path in paths]})


def _numbered(path: Path, count: int) -> list[Path]:
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}_{i}{path.suffix}") for i in range(count)]


if __name__ == "__main__":
    run(main, "sample_params")
