"""SavedPipeline: what of a pipeline lies in a folder or on the hub, the frozen base of its adapters included."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self, Unpack

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from generator.hub import pipeline_card
from generator.model import transformer
from generator.reading import reader as readers
from generator.tokens import normalizer as normalizers
from zoo.ambient import torch_defaults
from zoo.hub import CARD, SCHEME, UploadOptions, local_copy, upload
from zoo.storage.zoo import Zoo

PIPELINE_FOLDER: Final = "pipeline"  # where a training keeps its pipeline
_BASE_FILE: Final = "base.safetensors"


class SavedPipeline(DiffusionPipeline):
    """A pipeline of diffusers that is never looked for on a hub unless its address says so.

    Attributes:
        base: frozen numbers by name, of which the pipeline makes adapters; empty if it makes none.
        reader: of networks; None without.
    """

    base: dict[str, Tensor]
    reader: readers.WeightReader | None

    @classmethod
    @torch_defaults()
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """Pipeline in the folder that `save_pretrained` wrote, or in the one that a training was given as `out`.

        An address hf://USER/REPO is fetched (extra `hub`); nothing else is ever downloaded.

        Raises:
            FileNotFoundError: if there is none.
            HubError: if the address cannot be fetched.
        """
        address = str(pretrained_model_name_or_path)
        folder = local_copy(address) if address.startswith(SCHEME) else Path(address)
        found = [path for path in (folder, folder / PIPELINE_FOLDER) if (path / cls.config_name).exists()]
        if not found:
            is_unfinished = (folder / "checkpoints").exists()
            reason = "its training has not ended, run the same command again" if is_unfinished else "was it moved?"
            raise FileNotFoundError(f"no pipeline ({cls.config_name}) in {folder} or its {PIPELINE_FOLDER}/: {reason}")
        pipe: Self = super().from_pretrained(str(found[0]), **{"low_cpu_mem_usage": False, **kwargs})
        if (found[0] / _BASE_FILE).exists():
            pipe.base = load_file(found[0] / _BASE_FILE)
        return pipe

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Write the pipeline, and the frozen base of its adapters, into a folder that `from_pretrained` reads."""
        self.register_modules(reader=self.reader)  # which may have been set since
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.base:
            save_file(
                {name: value.contiguous() for name, value in self.base.items()}, Path(save_directory) / _BASE_FILE
            )

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The saved index, with the modules in which this release keeps the classes of the pipeline's parts.

        An index names the public surface, that of release 0.1 names files; diffusers looks for base classes there, too.
        """
        config: Any = super().load_config(*args, **kwargs)
        modules = {"model": transformer.__name__, "normalizer": normalizers.__name__}
        if config.get("reader", [None])[0] is not None:
            modules["reader"] = readers.__name__
        return {**config, **{name: [module, config[name][1]] for name, module in modules.items()}}

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        license: str | None = None,
        zoos: Sequence[Zoo] = (),
        results: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
        **options: Unpack[UploadOptions],
    ) -> str:
        """Upload the pipeline to the Hugging Face Hub with a filled-in card; returns its address.

        It is then read from `hf://REPO_ID`. Needs the extra `hub`.

        Args:
            repo_id: USER/NAME; made if it is not there.
            license: that the card names, such as "apache-2.0".
            zoos: that it learned from; the card says their tasks, sizes and hashes of data.
            results: figures by name for the card, such as `alignment` of a training's `summary.json` has for each zoo.
            **options: `private`, `token`, `revision` and `replace`, see `zoo.hub.UploadOptions`.

        Raises:
            FileExistsError: if the repository holds files, and `replace` is not set.
            HubError: if the hub cannot be reached, or refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            files: dict[str, Path | bytes] = {
                path.relative_to(folder).as_posix(): path for path in sorted(Path(folder).rglob("*")) if path.is_file()
            }
            text = pipeline_card(self, repo_id, license=license, zoos=zoos, results=results)
            return upload({**files, CARD: text}, repo_id, **options)
