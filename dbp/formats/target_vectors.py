"""Vectors of target images from a file: what scores and filters compare a pool with."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from dbp.engine.paths import file_digest
from dbp.errors import ConfigError, WorldError

CHUNK = 4096  # targets at once: 12 MB at width 768
SAMPLED = 200  # vectors of a test set that are looked for
EQUAL = 1 - 1e-4  # cosine from which two vectors are of one image: encoders differ by less between machines


@dataclass(frozen=True)
class Targets:
    """Unit vectors of target images, read chunk by chunk.

    Args:
        path: A `.npy` of shape (m, d), an `.npz` with one such array, or the folder of an artifact of embeddings.
        setting: What names it, for messages.
    """

    path: Path
    setting: str

    @cached_property
    def files(self) -> list[Path]:
        """The files that hold the vectors.

        Raises:
            ConfigError: There is no such file, or the folder holds no vectors.
        """
        if not self.path.is_dir():
            file_digest(self.path, self.setting)
            return [self.path]
        found = sorted(self.path.glob("part-*/vectors.npy"))
        if not found:
            raise ConfigError(
                f"{self.setting}={str(self.path)!r} holds no part-*/vectors.npy. Give the folder of an artifact of "
                "embeddings, or a .npy of one vector a row."
            )
        return found

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest of an artifact; empty for other files."""
        file = self.path / "manifest.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    def identity(self) -> Any:
        """What names the content: an artifact's key, or digests of the files."""
        return self.manifest.get("key") or [file_digest(file, self.setting) for file in self.files]

    @cached_property
    def arrays(self) -> list[np.ndarray]:
        """The vectors as they lie in each file.

        Raises:
            WorldError: A file is damaged, a pickle, or does not hold one float vector a row.
        """
        return [array for array in map(self._array, self.files) if len(array)]

    def _array(self, file: Path) -> np.ndarray:
        try:
            found: Any = np.load(file, mmap_mode="r", allow_pickle=False)
            if not isinstance(found, np.ndarray):
                if len(found.files) != 1:
                    raise WorldError(f"{self.setting}: {file} holds the arrays {found.files}. Save one as .npy.")
                found = found[found.files[0]]
        except (ValueError, EOFError, OSError) as error:
            raise WorldError(
                f"{self.setting}: {file} is not an array of numpy ({error}). Pickles are never read; save the "
                "vectors with numpy.save."
            ) from error
        if found.ndim != 2 or found.dtype.kind != "f":
            raise WorldError(
                f"{self.setting}: {file} has shape {found.shape} of {found.dtype}; "
                "one float vector a row is needed."
            )
        return found

    @property
    def num_rows(self) -> int:
        return sum(map(len, self.arrays))

    def chunks(self) -> Iterator[Float32[np.ndarray, "b d"]]:
        """Unit vectors on the grid of 2^-24, so that products with stored vectors are exact in float64.

        Raises:
            WorldError: A vector has no direction.
        """
        for array in self.arrays:
            for start in range(0, len(array), CHUNK):
                block = np.asarray(array[start : start + CHUNK], np.float64)
                lengths = np.sqrt(np.square(block).sum(axis=1, keepdims=True))
                if not (np.isfinite(lengths).all() and (lengths > 0).all()):
                    bad = start + int(np.argmin(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)))
                    raise WorldError(
                        f"{self.setting}: vector {bad:,} of {self.path} is zero or not finite. Leave it out."
                    )
                yield (np.rint(block / lengths * 2.0**24) / 2.0**24).astype(np.float32)

    def require_like(self, width: int, pool_side: Sequence[Path]) -> None:
        """Refuse targets that another encoder made than the pool's vectors.

        A plain file carries no encoder: of it the width alone is compared.

        Args:
            width: Numbers of the pool's vectors.
            pool_side: Parts of the pool's embeddings.

        Raises:
            ConfigError: The width or the encoder differs, or there is no target.
        """
        widths = {array.shape[1] for array in self.arrays}
        if widths != {width}:
            held = f"vectors of {sorted(widths)} numbers" if widths else "no vector"
            raise ConfigError(
                f"{self.setting}={str(self.path)!r} holds {held}, and encoder.score gives {width:,}. Encode the "
                "targets with the pool's encoder."
            )
        file = pool_side[0].parent / "manifest.json"
        own = json.loads(file.read_text()) if file.is_file() else {}
        encoders = [about.get("parameters", {}).get("encoder") for about in (self.manifest, own)]
        if all(encoders) and encoders[0] != encoders[1]:
            raise ConfigError(
                f"{self.setting}={str(self.path)!r} was made by the encoder {encoders[0]}, and encoder.score is "
                f"{encoders[1]}. Encode the targets with the pool's encoder."
            )

    def refuse_test_sets(self, folders: Sequence[str]) -> None:
        """Refuse targets that are an evaluation's own test images.

        Of each set of kept vectors (`.npz` with `features`, one folder a set) 200 are looked for among the targets.
        Half of them found means that the set is among the targets; a few are near duplicates across splits.

        Raises:
            ConfigError: A folder holds no vectors, or a test set is among the targets.
        """
        if not folders:
            return
        files: list[Path] = []
        for folder in folders:
            files += (own := sorted(Path(folder).rglob("*.npz")))
            if not own:
                raise ConfigError(
                    f"test_sets: {folder!r} holds no .npz of an evaluation's vectors (runs/…/vectors)."
                )
        _refuse(self, json.dumps(self.identity()), tuple(files))


@lru_cache(16)  # asked before a run, for each artifact that is taken, and after one is made
def _refuse(targets: Targets, identity: str, files: tuple[Path, ...]) -> None:
    sets: dict[Path, list[np.ndarray]] = {}
    for file in files:
        with np.load(file, allow_pickle=False) as held:
            sets.setdefault(file.parent, []).append(held["features"])
    for home, found in sets.items():
        vectors = np.concatenate(found)
        some = vectors[np.linspace(0, len(vectors) - 1, min(SAMPLED, len(vectors))).astype(int)]
        if not targets.arrays or some.shape[1] != targets.arrays[0].shape[1]:
            continue
        best = np.max([(some.astype(np.float32) @ chunk.T).max(axis=1) for chunk in targets.chunks()], axis=0)
        if (share := float((best >= EQUAL).mean())) > 0.5:
            raise ConfigError(
                f"{targets.setting}={str(targets.path)!r} holds the test images of {home.name}: {share:.0%} of "
                f"those looked for ({home}) are among the targets. Take the training split."
            )
