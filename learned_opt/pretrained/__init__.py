"""Meta-parameters in files; the weights of the package and their cards lie beside this module."""

from typing import TYPE_CHECKING

from zoo.lazy import lazy_surface

if TYPE_CHECKING:
    from learned_opt.pretrained.files import Pretrained, ThetaFileError, available, load_pretrained, save_theta
else:
    __getattr__, __dir__ = lazy_surface(__name__)

__all__ = ["Pretrained", "ThetaFileError", "available", "load_pretrained", "save_theta"]
