"""Artefacts on disk: what is written comes back, everything else is refused with a sentence, and nothing runs."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.support.trained import made, world_of
from tierwise.core.learned import Trained
from tierwise.study.training import artefact
from tierwise.study.training.artefact import ARRAYS, MANIFEST, ArtefactError, load, read_manifest, save
from tierwise.study.training.fit import Fitted, fit, identified

REPORT = fit(world_of(60)[0]).report


def fitted(**given: Any) -> Fitted:
    return Fitted(identified(made(**given)), REPORT, "da7a" * 4)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, str]:
    return tmp_path, save(fitted(), tmp_path)


def rewritten(folder: Path, id: str, data: bytes, **changes: Any) -> None:
    """Another archive, and a manifest that vouches for it."""
    home = folder / id
    told = msgspec.json.decode((home / MANIFEST).read_bytes())
    told |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), **changes}
    (home / ARRAYS).write_bytes(data)
    (home / MANIFEST).write_bytes(msgspec.json.encode(told))


def archive(arrays: dict[str, Any], *, kind: int = zipfile.ZIP_STORED) -> bytes:
    """As NumPy writes one, pickles and all."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as made_of:
        for name, value in arrays.items():
            part = io.BytesIO()
            np.lib.format.write_array(part, np.asanyarray(value), allow_pickle=True)
            made_of.writestr(f"{name}.npy", part.getvalue())
    return file.getvalue()


def contents(folder: Path, id: str) -> dict[str, Any]:
    with np.load(folder / id / ARRAYS, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


# ------------------------------------------------------------------------------------------------ there and back


@pytest.mark.parametrize("given", [{}, {"workloads": ()}, {"grams": 0}, {"models": ("only",)}], ids=str)
def test_what_is_saved_comes_back(tmp_path: Path, given: dict[str, Any]) -> None:
    wanted = fitted(**given)
    id = save(wanted, tmp_path / "new" / "folder")
    assert load(tmp_path / "new" / "folder", id) == wanted.trained
    told = read_manifest(tmp_path / "new" / "folder", id)
    assert (told.id, told.data_hash, told.report) == (id, wanted.data_hash, REPORT)
    assert told.libraries["numpy"] == np.__version__ and told.made_s > 1_700_000_000


def test_numpy_reads_the_archive(saved: tuple[Path, str]) -> None:
    folder, id = saved
    trained = load(folder, id)
    found = contents(folder, id)
    assert found["gram_weights"].shape == (found["grams"].size, 2)
    assert found["bias"].tobytes() == trained.bias


def test_equal_content_is_one_artefact(saved: tuple[Path, str]) -> None:
    folder, id = saved
    before = (folder / id / ARRAYS).read_bytes(), (folder / id / MANIFEST).stat().st_mtime_ns
    assert save(fitted(), folder) == id
    assert before == ((folder / id / ARRAYS).read_bytes(), (folder / id / MANIFEST).stat().st_mtime_ns)
    assert save(fitted(seed=1), folder) != id
    assert sorted(each.name for each in folder.iterdir()) == sorted({id, fitted(seed=1).trained.id}), "no drafts"


def test_a_broken_one_is_replaced(saved: tuple[Path, str]) -> None:
    folder, id = saved
    (folder / id / ARRAYS).write_bytes(b"")
    assert save(fitted(), folder) == id
    assert load(folder, id) == fitted().trained


def test_one_that_cannot_serve_is_not_saved(tmp_path: Path) -> None:
    broken = msgspec.structs.replace(fitted().trained, features_version=99)
    with pytest.raises(ArtefactError, match="is not saved: it was trained on features of version 99"):
        save(Fitted(broken, REPORT, ""), tmp_path)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ what is refused


def no_folder(folder: Path, id: str) -> None:
    (folder / id / ARRAYS).unlink()


def other_bytes(folder: Path, id: str) -> None:
    path = folder / id / ARRAYS
    data = bytearray(path.read_bytes())
    data[-300] ^= 1
    path.write_bytes(data)


def not_json(folder: Path, id: str) -> None:
    (folder / id / MANIFEST).write_bytes(b"\x80\x04cos\nsystem\n")


def deep_json(folder: Path, id: str) -> None:
    (folder / id / MANIFEST).write_bytes(b"[" * 100_000)


def other_kind(folder: Path, id: str) -> None:
    (folder / id / MANIFEST).write_bytes(b'{"kind": "something else"}')


def more_fields(folder: Path, id: str) -> None:
    rewritten(folder, id, (folder / id / ARRAYS).read_bytes(), loader="os.system")


def another_id(folder: Path, id: str) -> None:
    path = folder / id / MANIFEST
    path.write_bytes(path.read_bytes().replace(id.encode(), b"0" * 16))


def other_version(folder: Path, id: str) -> None:
    rewritten(folder, id, (folder / id / ARRAYS).read_bytes(), features_version=99)


def not_a_number(folder: Path, id: str) -> None:
    found = contents(folder, id)
    found["bias"][0] = np.nan
    rewritten(folder, id, archive(found))


def other_weights(folder: Path, id: str) -> None:
    found = contents(folder, id)
    found["bias"][0] += 1
    rewritten(folder, id, archive(found))


def other_shape(folder: Path, id: str) -> None:
    found = contents(folder, id)
    rewritten(folder, id, archive({**found, "dense_weights": found["dense_weights"].T}))


def other_type(folder: Path, id: str) -> None:
    found = contents(folder, id)
    rewritten(folder, id, archive({**found, "bias": found["bias"].view("<i4")}))


def one_missing(folder: Path, id: str) -> None:
    found = contents(folder, id)
    found.pop("doubt")
    rewritten(folder, id, archive(found))


def one_more(folder: Path, id: str) -> None:
    rewritten(folder, id, archive({**contents(folder, id), "__init__": np.zeros(1)}))


def packed(folder: Path, id: str) -> None:
    rewritten(folder, id, archive(contents(folder, id), kind=zipfile.ZIP_DEFLATED))


def a_bomb(folder: Path, id: str) -> None:
    found = contents(folder, id)
    rewritten(folder, id, archive({**found, "bias": np.zeros(20_000_000, "<f4")}, kind=zipfile.ZIP_DEFLATED))


def no_archive(folder: Path, id: str) -> None:
    rewritten(folder, id, b"PK\x03\x04 nothing")


def huge_claim(folder: Path, id: str) -> None:
    rewritten(folder, id, (folder / id / ARRAYS).read_bytes(), grams=10**15)


def below_none(folder: Path, id: str) -> None:
    rewritten(folder, id, (folder / id / ARRAYS).read_bytes(), grams=-1)


def other_counts(folder: Path, id: str) -> None:
    rewritten(folder, id, (folder / id / ARRAYS).read_bytes(), counted=["bias"])


REFUSED: dict[Callable[[Path, str], None], str] = {
    no_folder: "cannot be read: No such file",
    other_bytes: "its SHA-256 differs",
    not_json: "not a manifest",
    deep_json: "not a manifest",
    other_kind: "not a manifest.*kind",
    more_fields: "not a manifest.*loader",
    another_id: "it is about '0000000000000000'",
    other_version: "features of version 99, and this build reads",
    not_a_number: "bias has a number that is none",
    other_weights: "not what its id was made of",
    other_shape: "dense_weights is not an array",
    other_type: "bias is not an array",
    one_missing: "does not hold the arrays",
    one_more: "does not hold the arrays",
    packed: "is packed",
    a_bomb: "is packed",
    no_archive: "not an archive",
    huge_claim: "is packed, or is not",
    below_none: "arrays that an estimator does not have",
    other_counts: "arrays that an estimator does not have",
}


@pytest.mark.parametrize(("spoil", "told"), REFUSED.items(), ids=[each.__name__ for each in REFUSED])
def test_a_bad_artefact_is_refused_with_a_sentence(
    saved: tuple[Path, str], spoil: Callable[[Path, str], None], told: str
) -> None:
    folder, id = saved
    spoil(folder, id)
    with pytest.raises(ArtefactError, match=told) as error:
        load(folder, id)
    assert str(folder) in str(error.value), "it says where"


def test_what_is_too_large_is_not_read(saved: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, id = saved
    for name in ("MOST_BYTES", "MOST_MANIFEST_BYTES"):
        with monkeypatch.context() as small:
            small.setattr(artefact, name, 100)
            with pytest.raises(ArtefactError, match="larger than"):
                load(folder, id)


@pytest.mark.parametrize("id", ["", "..", "../../etc", "0" * 15, "0" * 17, "G" * 16, "0" * 15 + "/", "0" * 16 + "\n"])
def test_an_id_is_no_path(tmp_path: Path, id: str) -> None:
    with pytest.raises(ArtefactError, match="no estimator's id"):
        load(tmp_path, id)


class Runs:
    """A pickle of this makes a file when it is read."""

    def __init__(self, call: Any, *given: Any) -> None:
        self.call = call, given

    def __reduce__(self) -> Any:
        return self.call


def test_no_pickle_ever_runs(saved: tuple[Path, str]) -> None:
    """Twenty of them: in place of the archive, of the manifest, of an array, inside an array of objects, and vouched
    for by a manifest that matches. Each would make a file; none does."""
    folder, id = saved
    trap = folder / "trap"
    code = f"open({str(trap)!r}, 'w').close()"
    loads: list[Any] = [Runs(exec, code), Runs(eval, code), Runs(os.system, f"touch {trap}"), Runs(os.mkdir, str(trap))]
    good = contents(folder, id)
    original = {name: (folder / id / name).read_bytes() for name in (ARRAYS, MANIFEST)}
    refused = 0
    for load_of in loads:
        data = pickle.dumps(load_of)
        for write in (
            lambda data=data: rewritten(folder, id, data),
            lambda data=data: (folder / id / MANIFEST).write_bytes(data),
            lambda of=load_of: rewritten(folder, id, archive({**good, "bias": np.array([of, of], dtype=object)})),
            lambda of=load_of: rewritten(folder, id, archive({**good, "grams": np.array(of, dtype=object)})),
            lambda data=data: rewritten(folder, id, raw({**good}, "scale", data)),
        ):
            for name, content in original.items():
                (folder / id / name).write_bytes(content)
            write()
            with pytest.raises(ArtefactError):
                load(folder, id)
            refused += 1
    assert refused == 20
    assert not trap.exists()
    pickle.loads(pickle.dumps(loads[0]))  # noqa: S301  (that it would have run)
    assert trap.exists()


def raw(arrays: dict[str, Any], name: str, data: bytes) -> bytes:
    """An archive in which one member is these bytes."""
    file = io.BytesIO(archive({each: value for each, value in arrays.items() if each != name}))
    with zipfile.ZipFile(file, "a") as made_of:
        made_of.writestr(f"{name}.npy", data)
    return file.getvalue()


def test_mutations_load_nothing_else_and_crash_nowhere(saved: tuple[Path, str]) -> None:
    """Random bytes changed, cut, doubled or moved, the manifest's hash made to match: an ArtefactError each time, or,
    where a mutation hit nothing that is read, the very same estimator."""
    folder, id = saved
    good = load(folder, id)
    original = {name: (folder / id / name).read_bytes() for name in (ARRAYS, MANIFEST)}
    generator, refused = random.Random(1), 0
    for turn in range(500):
        for name, content in original.items():
            (folder / id / name).write_bytes(content)
        if turn % 2:
            rewritten(folder, id, mutated(original[ARRAYS], generator))
        else:
            (folder / id / MANIFEST).write_bytes(mutated(original[MANIFEST], generator))
        try:
            found: Trained = load(folder, id)
        except ArtefactError:
            refused += 1
        else:
            assert found == good
    assert refused > 350


def mutated(data: bytes, generator: random.Random) -> bytes:
    at, length = generator.randrange(len(data)), generator.randrange(1, 40)
    match generator.randrange(4):
        case 0:
            return data[:at] + generator.randbytes(length) + data[at + length :]
        case 1:
            return data[:at] + data[at + length :]
        case 2:
            return data[:at] + data[at : at + length] + data[at:]
        case _:
            return data[:at]
