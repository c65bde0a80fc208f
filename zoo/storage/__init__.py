"""The format on disk: what a zoo's files hold, how a crash leaves them whole, how damage is found."""

from zoo.storage.schema import RunStatus, ZooSpec
from zoo.storage.writer import ZooWriter

__all__ = [
    "RunStatus",
    "ZooSpec",
    "ZooWriter",
]
