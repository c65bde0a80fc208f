"""FromFolder: models that are read from folders alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self


class FromFolder:
    """Before diffusers' `ModelMixin` among the bases: what is missing in a folder is not looked for on a hub."""

    config_name: str

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, **kwargs: Any) -> Self:
        """The model in a folder that `save_pretrained` wrote.

        Raises:
            FileNotFoundError: if there is none.
        """
        path = Path(folder, kwargs.get("subfolder") or "") / cls.config_name
        if not path.exists():
            raise FileNotFoundError(f"no {cls.__name__} in {folder}: {path} is missing")
        loaded: Self = super().from_pretrained(str(folder), **kwargs)  # type: ignore[misc]
        return loaded
