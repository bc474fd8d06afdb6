"""Pools in other layouts than tars, as a config names them."""

from abc import abstractmethod
from dataclasses import dataclass

from dbp.data.images import DROP
from dbp.engine.stage import Node, Stage
from dbp.pools.index import Index
from dbp.pools.packed import PackFolder, PackParquet


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """What every layout has; see `dbp.pools.index.Index`."""

    uid: str
    caption: str
    max_pixels: int
    max_samples: int | None = None
    background: str = DROP
    expect: int | None = None

    @abstractmethod
    def pack(self) -> Stage:
        """The stage that writes the samples as tars."""

    def node(self) -> Node:
        """The index of the packed samples."""
        index = Index(
            uid=self.uid, caption=self.caption, max_pixels=self.max_pixels, max_samples=self.max_samples,
            background=self.background, expect=self.expect,
        )  # fmt: skip
        return index.bind(folder=self.pack().bind())


@dataclass(frozen=True, kw_only=True)
class ParquetPool(_Layout):
    """Parquet files with a column of images."""

    files: str | list[str]
    image: str | None = None

    def pack(self) -> Stage:
        return PackParquet(self.image, self.files)


@dataclass(frozen=True, kw_only=True)
class FolderPool(_Layout):
    """A folder of image files."""

    folder: str

    def pack(self) -> Stage:
        return PackFolder(self.folder)
