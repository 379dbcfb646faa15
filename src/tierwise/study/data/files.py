"""Outcome files, found, opened in DuckDB and checked row by row. Nothing is read whole: each file is a view, or a table
on disk where its format would be read anew for every question.

Every file has its columns under their names as text or DOUBLE, a column that is missing as NULL, and `row`, which
counts from 1. Each pair's rows know their pair's number, since ids need to differ within a pair only.
"""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tierwise.core.errors import DataError, Problem
from tierwise.study.data.columns import (
    COLUMNS,
    KINDS,
    NEEDED,
    PASSED_OVER,
    ROWS,
    Column,
    Kind,
    LabelRow,
    OutcomeRow,
    PromptRow,
)

if TYPE_CHECKING:
    import duckdb

SUFFIXES = (".parquet", ".csv", ".jsonl")
PROBLEMS_TOLD = 10  # of one file
MEMORY_MB = 1_024  # for DuckDB
_NUMBERS = frozenset(
    (
        "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT",
        "UHUGEINT", "FLOAT", "DOUBLE", "DECIMAL", "BOOLEAN", "VARCHAR", "JSON", '"NULL"',
    )
)  # fmt: skip
_TEXTS = _NUMBERS | {"UUID"}


class Pair(msgspec.Struct, frozen=True):
    """Files that belong together. `name` is what stands before `.prompts`."""

    name: str
    prompts: Path
    outcomes: Path
    labels: Path | None = None

    def files(self) -> Iterator[tuple[Kind, Path]]:
        for kind in KINDS:
            path: Path | None = getattr(self, kind)
            if path is not None:
                yield kind, path


class Opened(msgspec.Struct, frozen=True):
    """A database with the views `prompts`, `outcomes` and `labels` over all pairs."""

    database: duckdb.DuckDBPyConnection
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]

    def count(self, query: str) -> int:
        return int(self.database.execute(query).fetchall()[0][0])


def pairs_of(paths: Iterable[Path | str]) -> tuple[Pair, ...]:
    """The pairs in these folders, and those that these files belong to; each once, by name. Raises DataError."""
    found: dict[tuple[str, str], dict[Kind, Path]] = {}
    for path in map(Path, paths):
        if path.is_dir():
            files = [each for each in sorted(path.iterdir()) if _kind(each)]
            if not files:
                raise _no(path, "holds no outcome files; NAME.prompts.parquet and NAME.outcomes.parquet are wanted")
        elif not path.exists():
            raise _no(path, "is not there; a folder or an outcome file is wanted")
        elif not _kind(path):
            raise _no(path, "is no outcome file; its name should end in .prompts or .outcomes and " + _one_of(SUFFIXES))
        else:
            files = [each for each in sorted(path.parent.iterdir()) if _stem(each) == _stem(path) and _kind(each)]
        for file in files:
            kind = _kind(file) or "prompts"
            group = found.setdefault((str(file.parent), _stem(file)), {})
            if kind in group and group[kind] != file:
                raise _no(file, f"and {group[kind].name} are both there; keep one of them")
            group[kind] = file
    if not found:
        raise DataError((Problem("paths", "none was given; name a folder or a pair of outcome files"),))
    return tuple(_pair(name, group) for (_, name), group in sorted(found.items(), key=lambda each: each[0][::-1]))


def _pair(name: str, group: dict[Kind, Path]) -> Pair:
    for kind in ("prompts", "outcomes"):
        if kind not in group:
            other = next(iter(group.values()))
            raise _no(other, f"has no {name}.{kind}{other.suffix} beside it")
    return Pair(name, group["prompts"], group["outcomes"], group.get("labels"))


def _kind(path: Path) -> Kind | None:
    if path.suffix.casefold() not in SUFFIXES or not path.is_file():
        return None
    ending = Path(path.stem).suffix[1:]
    return next((kind for kind in KINDS if kind == ending), None)


def _stem(path: Path) -> str:
    return Path(path.stem).stem


def _no(path: Path, what: str) -> DataError:
    return DataError((Problem(str(path), what),))


def _one_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


@contextmanager
def scratch() -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB of bounded memory that is gone afterwards. It fetches no extension from anywhere."""
    try:
        import duckdb
    except ImportError:
        what = "reading and writing outcomes needs it; install tierwise[learn]"
        raise DataError((Problem("duckdb", what),)) from None

    with tempfile.TemporaryDirectory(prefix="tierwise-study-") as folder:
        database = duckdb.connect(
            ":memory:",  # what does not fit goes to the folder
            config={
                "memory_limit": f"{MEMORY_MB}MB",
                "temp_directory": folder,
                "threads": str(min(4, os.cpu_count() or 1)),
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
            },
        )
        try:
            yield database
        finally:
            database.close()


@contextmanager
def opened(paths: Iterable[Path | str]) -> Iterator[Opened]:
    """The files behind these paths, checked. Raises DataError with every problem of the first file that has any."""
    pairs = pairs_of(paths)
    with scratch() as database:
        notes: list[str] = []
        views: dict[Kind, list[str]] = {kind: [] for kind in KINDS}
        for number, pair in enumerate(pairs):
            for kind, path in pair.files():
                try:
                    view = f"{kind}_{number}"
                    notes += _open(database, kind, path, view)
                    _check_rows(database, kind, path, view)
                    _check_unique(database, kind, path, view)
                except _duckdb_error() as error:
                    raise _no(path, f"cannot be read: {str(error).splitlines()[0]}") from None
                views[kind].append(f"SELECT {number} AS pair, * FROM {view}")
        for kind, each in views.items():
            database.execute(f"CREATE VIEW {kind} AS {' UNION ALL '.join(each) or _nothing(kind)}")
        yield Opened(database, pairs, tuple(dict.fromkeys(notes)))


def _duckdb_error() -> type[Exception]:
    import duckdb

    return duckdb.Error


def _open(database: duckdb.DuckDBPyConnection, kind: Kind, path: Path, view: str) -> list[str]:
    """Makes the view, and `raw_VIEW` with the values as they are; gives notes of columns that are not read."""
    if not path.stat().st_size:
        raise _no(path, "holds no rows")
    source = _reader(database, path)
    types = {
        str(name): str(type_) for name, type_, *_ in database.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()
    }
    types.pop("file_row_number", None)
    known = {column.name: column for column in COLUMNS[kind]}
    unread = [name for name in types if name not in known and name not in PASSED_OVER]
    problems = []
    for name in NEEDED[kind]:
        if name not in types:
            nearest = difflib.get_close_matches(name, unread, 1)
            problems.append(Problem(name, f"there is no such column in this table of {kind}", nearest="".join(nearest)))
    if kind == "prompts" and not {"prompt", "features"} & set(types):
        problems.append(Problem("prompt", "a table of prompts needs the column prompt (the text) or features"))
    for name, column in known.items():
        if name in types and types[name].split("(")[0] not in (_NUMBERS if column.is_number else _TEXTS):
            right = column.what or ("a number" if column.is_number else "text")
            problems.append(Problem(name, f"the column is of the type {types[name]}; right is {right}"))
    if problems:
        raise DataError(tuple(problems), str(path))
    is_parquet = path.suffix.casefold() == ".parquet"
    row = "file_row_number + 1" if is_parquet else "row_number() OVER ()"
    have = ", ".join([f'"{name}"' for name in known if name in types])
    database.execute(
        f"CREATE {'VIEW' if is_parquet else 'TABLE'} raw_{view} AS SELECT {row} AS row, {have} FROM {source}"
    )
    columns = [_typed(column, name in types) for name, column in known.items()]
    database.execute(f"CREATE VIEW {view} AS SELECT row, {', '.join(columns)} FROM raw_{view}")
    return [_unread(path, kind, name) for name in unread]


def _typed(column: Column, is_there: bool) -> str:
    kind = "DOUBLE" if column.is_number else "VARCHAR"
    value = f'TRY_CAST("{column.name}" AS {kind})'
    value = value if column.is_number else f"NULLIF({value}, '')"
    return f'{value if is_there else f"NULL::{kind}"} AS "{column.name}"'


def _unread(path: Path, kind: Kind, name: str) -> str:
    nearest = difflib.get_close_matches(name, [column.name for column in COLUMNS[kind]], 1)
    return f"{path.name}: the column {name} is not read" + (f" (did you mean {nearest[0]!r}?)" if nearest else "")


def _reader(database: duckdb.DuckDBPyConnection, path: Path) -> str:
    """The table function that reads the file, in SQL. Text formats give text; types are ours to check."""
    name = _quoted(path)
    match path.suffix.casefold():
        case ".parquet":
            return f"read_parquet({name}, file_row_number = true)"
        case ".csv":
            form = "header = true, all_varchar = true, delim = ',', quote = '\"', escape = '\"', skip = 0"
            return f"read_csv({name}, {form})"  # the form is given, not guessed: a guess may pass over rows
        case _:
            lines = f"read_json({name}, format = 'newline_delimited'"
            found = database.execute(f"DESCRIBE SELECT * FROM {lines}, sample_size = 10000)").fetchall()
            columns = ", ".join('"' + str(column).replace('"', '""') + "\": 'VARCHAR'" for column, *_ in found)
            return f"{lines}, columns = {{{columns}}})"


def _nothing(kind: Kind) -> str:
    columns = (f"NULL::{'DOUBLE' if each.is_number else 'VARCHAR'} AS {each.name}" for each in COLUMNS[kind])
    return f"SELECT 0 AS pair, 0 AS row, {', '.join(columns)} WHERE false"


def _check_rows(database: duckdb.DuckDBPyConnection, kind: Kind, path: Path, view: str) -> None:
    """Every value of every row, in one pass."""
    there = {str(name) for name, *_ in database.execute(f"DESCRIBE raw_{view}").fetchall()}
    tests = [
        (column.name, what, condition)
        for column in COLUMNS[kind]
        if column.name in there
        for what, condition in column.bad().items()
    ]
    asked = ", ".join(f"min(row) FILTER ({test}), count(*) FILTER ({test})" for _, _, test in tests)
    found = database.execute(f"SELECT count(*), {asked} FROM raw_{view}").fetchall()[0]
    if not found[0] and kind != "labels":
        raise _no(path, "holds no rows")
    problems: list[Problem] = []
    for (name, what, _), row, many in zip(tests, found[1::2], found[2::2], strict=True):
        if row is not None and len(problems) < PROBLEMS_TOLD:
            value = database.execute(f'SELECT "{name}"::VARCHAR FROM raw_{view} WHERE row = {row}').fetchone()
            shown = f"{value[0][:60]!r} " if value and value[0] else ""
            more = f" (and {many - 1:,} rows more)" if many > 1 else ""
            problems.append(Problem(name, f"{shown}{what}{more}", line=row))
    if problems:
        raise DataError(tuple(problems), str(path))


def _check_unique(database: duckdb.DuckDBPyConnection, kind: Kind, path: Path, view: str) -> None:
    if kind == "labels":
        return
    by = "prompt_id" if kind == "prompts" else "prompt_id, model"
    # Hashes first: they take a fraction of the memory that the names would.
    twice = f"SELECT hash({by}) FROM {view} GROUP BY 1 HAVING count(*) > 1 LIMIT 100"
    found = database.execute(
        f"SELECT {by}, min(row), max(row) FROM {view} WHERE hash({by}) IN ({twice})"
        f" GROUP BY {by} HAVING count(*) > 1 ORDER BY min(row) LIMIT 1"
    ).fetchone()
    if found is None:
        return
    *names, first, last = found
    what = f"{' and '.join(map(repr, names))} stood in row {first} already; a "
    what += "prompt has one row" if kind == "prompts" else "prompt and a model have one row together"
    raise DataError((Problem(by.replace(", ", " and "), what, line=last),), str(path))


def write(
    folder: Path | str,
    name: str,
    prompts: Iterable[PromptRow],
    outcomes: Iterable[OutcomeRow],
    labels: Iterable[LabelRow] = (),
) -> tuple[Path, ...]:
    """The rows as NAME.prompts.parquet and so on, in place of files of the same name; each is read once and never held
    whole. Gives the paths. Raises DataError when the folder cannot be written."""
    encode, made = msgspec.json.Encoder().encode, []
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tierwise-", dir=folder) as beside, scratch() as database:
            for kind, rows in zip(KINDS, (prompts, outcomes, labels), strict=True):
                lines, target = Path(beside) / f"{kind}.jsonl", Path(beside) / f"{kind}.parquet"
                with lines.open("wb") as file:
                    file.writelines(encode(row) + b"\n" for row in rows)
                types = ", ".join(
                    f"{field.name}: '{_TYPES[field.type]}'" for field in msgspec.structs.fields(ROWS[kind])
                )
                source = f"read_json({_quoted(lines)}, format = 'newline_delimited', columns = {{{types}}})"
                if not lines.stat().st_size:
                    source = f"(SELECT {_empty(types)} WHERE false)"
                database.execute(f"COPY (SELECT * FROM {source}) TO {_quoted(target)} (FORMAT parquet)")
                lines.unlink()
                made.append(Path(folder) / f"{name}.{kind}.parquet")
            for kind, path in zip(KINDS, made, strict=True):
                os.replace(Path(beside) / f"{kind}.parquet", path)
    except OSError as error:
        raise _no(Path(folder), f"cannot be written: {error.strerror}") from None
    return tuple(made)


# As DuckDB calls what the rows hold.
_TYPES: dict[object, str] = {str: "VARCHAR", str | None: "VARCHAR", int: "BIGINT", int | None: "BIGINT"}
_TYPES |= {float: "DOUBLE", float | None: "DOUBLE"}


def _empty(types: str) -> str:
    return ", ".join(f"NULL::{each.split(': ')[1][1:-1]} AS {each.split(': ')[0]}" for each in types.split(", "))


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
