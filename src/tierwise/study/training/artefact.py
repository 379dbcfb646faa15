"""A trained estimator on disk: FOLDER/ID/manifest.json and arrays.npz. Data only; reading one runs nothing of it.

`arrays.npz` is a plain NumPy archive, uncompressed, that `numpy.load` opens. It is not read that way here: the manifest
says what must be in it, and a file that is not exactly this, byte for byte up to the numbers, is refused.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec

from tierwise.core.errors import TierwiseError
from tierwise.core.learned import Trained, problems
from tierwise.study.training.fit import FitReport, Fitted, identified
from tierwise.study.training.histograms import Histogram

MANIFEST, ARRAYS = "manifest.json", "arrays.npz"
MOST_BYTES = 256 << 20
MOST_MANIFEST_BYTES = 16 << 20
OPTIONAL = ("tokens", "latency", "usual", "stranger")  # arrays that may be absent
LIBRARIES = ("msgspec", "numpy", "scipy", "tierwise")
# The archive's members have no time of their own, so that equal weights are equal files.
_WHEN = (1980, 1, 1, 0, 0, 0)
_ID = re.compile(r"[0-9a-f]{16}")


class ArtefactError(TierwiseError):
    """An artefact that cannot be used; a sentence that says where and why."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kind: Literal["tierwise estimator"] = "tierwise estimator"
    version: Literal[1] = 1
    id: str
    made_s: int
    features_version: int
    reference: str
    models: tuple[str, ...]
    dense: tuple[str, ...]
    workloads: tuple[str, ...]
    grams: int
    counted: tuple[str, ...]  # of OPTIONAL those that are there
    bytes: int  # of arrays.npz
    sha256: str  # of arrays.npz
    data_hash: str
    libraries: dict[str, str]
    report: FitReport
    inputs: tuple[Histogram, ...] = ()  # how they were distributed; none before there were any


def save(fitted: Fitted, folder: Path) -> str:
    """Write it below `folder`, whole or not at all, and give its id. One that is there already, and sound, stays.
    Raises ArtefactError for an estimator that could not serve, OSError when the folder cannot be written."""
    trained = fitted.trained
    for problem in problems(trained):
        raise ArtefactError(f"estimator {trained.id} is not saved: {problem}")
    counted = tuple(name for name in OPTIONAL if getattr(trained, name))
    data = _archive(trained, counted)
    manifest = Manifest(
        id=trained.id,
        made_s=int(time.time()),
        features_version=trained.features_version,
        reference=trained.reference,
        models=trained.models,
        dense=trained.dense,
        workloads=trained.workloads,
        grams=len(trained.grams) // 2,
        counted=counted,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        data_hash=fitted.data_hash,
        libraries={"python": sys.version.split()[0], **dict(_versions())},
        report=fitted.report,
        inputs=fitted.inputs,
    )
    folder.mkdir(parents=True, exist_ok=True)
    home = folder / trained.id
    if home.exists():
        try:
            load(folder, trained.id)
        except ArtefactError:
            shutil.rmtree(home)
        else:
            return trained.id
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder))
    try:
        _write(draft / ARRAYS, data)
        _write(draft / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        draft.rename(home)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return trained.id


def load(folder: Path, id: str) -> Trained:
    """The estimator that `save` wrote. Raises ArtefactError for anything else."""
    found = read_manifest(folder, id)
    path = folder / id / ARRAYS
    data = _read(path, MOST_BYTES)
    if len(data) != found.bytes or hashlib.sha256(data).hexdigest() != found.sha256:
        raise ArtefactError(
            f"{path}: not the file that its manifest was written for (its SHA-256 differs); fit it again"
        )
    arrays = _opened(path, data, found)
    trained = Trained(
        id=found.id,
        features_version=found.features_version,
        reference=found.reference,
        models=found.models,
        dense=found.dense,
        workloads=found.workloads,
        **arrays,
    )
    for problem in problems(trained):
        raise ArtefactError(f"{folder / id}: {problem}")
    if identified(trained).id != found.id:
        raise ArtefactError(f"{folder / id}: its content is not what its id was made of; fit it again")
    return trained


def read_manifest(folder: Path, id: str) -> Manifest:
    """What is said of an artefact, without its weights. Raises ArtefactError."""
    if not _ID.fullmatch(id):
        raise ArtefactError(f"{id!r} is no estimator's id: 16 digits 0-9 a-f")
    path = folder / id / MANIFEST
    data = _read(path, MOST_MANIFEST_BYTES)
    try:
        found = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtefactError(f"{path}: not a manifest of this version: {error}") from None
    if found.id != id:
        raise ArtefactError(f"{path}: it is about {found.id!r}, and its folder is {id!r}")
    return found


# ------------------------------------------------------------------------------------------------ the archive


def _shapes(found: Trained | Manifest, grams: int, counted: tuple[str, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The arrays, each with its type and shape."""
    models, width = len(found.models), len(found.dense)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "shift": ("<f4", (width,)),
        "scale": ("<f4", (width,)),
        "bias": ("<f4", (models,)),
        "workload_weights": ("<f4", (len(found.workloads), models)),
        "dense_weights": ("<f4", (width, models)),
        "grams": ("<u2", (grams,)),
        "gram_weights": ("<f4", (grams, models)),
        "slope": ("<f4", (models,)),
        "intercept": ("<f4", (models,)),
        "doubt": ("<f4", (models,)),
    }
    may_be = {"tokens": (width + 1, models), "latency": (width + 1, models), "usual": (models,), "stranger": (1,)}
    return shapes | {name: ("<f4", may_be[name]) for name in counted}


def _header(kind: str, shape: tuple[int, ...]) -> bytes:
    """Of a .npy file, format 1.0: magic, length, a dictionary padded to 64 bytes (NumPy enhancement proposal 1)."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape!r}, }}"
    padded = text + " " * (-(10 + len(text) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode("latin1")


def _archive(trained: Trained, counted: tuple[str, ...]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, (kind, shape) in _shapes(trained, len(trained.grams) // 2, counted).items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _WHEN), _header(kind, shape) + getattr(trained, name))
    return file.getvalue()


def _opened(path: Path, data: bytes, found: Manifest) -> dict[str, bytes]:
    if found.grams < 0 or not set(found.counted) <= set(OPTIONAL):
        raise ArtefactError(f"{path.parent / MANIFEST}: it names arrays that an estimator does not have")
    shapes = _shapes(found, found.grams, found.counted)
    arrays = dict.fromkeys(OPTIONAL, b"")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if sorted(each.filename for each in members) != sorted(f"{name}.npy" for name in shapes):
                raise ArtefactError(f"{path}: it does not hold the arrays that its manifest names, each once")
            for member in members:
                name = member.filename.removesuffix(".npy")
                kind, shape = shapes[name]
                header, size = _header(kind, shape), int(kind[2])
                for length in shape:
                    size *= length
                # Before anything is unpacked: a small file may claim to hold a large one.
                if member.compress_type != zipfile.ZIP_STORED or member.file_size != len(header) + size:
                    raise ArtefactError(f"{path}: {name} is packed, or is not {size} bytes long")
                content = archive.read(member)
                if not content.startswith(header):
                    raise ArtefactError(f"{path}: {name} is not an array {shape} of plain numbers ({kind})")
                arrays[name] = content[len(header) :]
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError, NotImplementedError) as error:
        raise ArtefactError(f"{path}: not an archive of arrays: {error}") from None
    return arrays


# ------------------------------------------------------------------------------------------------ files


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(data) > most:
        raise ArtefactError(f"{path}: larger than {most >> 20} MiB, which no estimator needs")
    return data


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _versions() -> Iterator[tuple[str, str]]:
    for name in LIBRARIES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
