"""Named data sets: where each is found, how it is rebuilt from public sources, and the sha256 of its content.

registry   entries of registry.toml: what a data set holds and where it comes from
content    the content of a file, whatever it is packed in, and its sha256
sources    downloads and archives: the raw files of an entry
recipes    pure functions from raw files to the content
local      the mirror, the cache, and what is brought into it
"""

from artifact.datasets.local import available, build, found, mirror, path, path_or_none, prepare, verify
from artifact.datasets.registry import Dataset, DatasetUnavailable, Source, get, names

__all__ = [
    "Dataset",
    "DatasetUnavailable",
    "Source",
    "available",
    "build",
    "found",
    "get",
    "mirror",
    "names",
    "path",
    "path_or_none",
    "prepare",
    "verify",
]
