"""Five hundred strange things that somebody may send for a key (A3): SQL, bytes that end other languages' strings,
letters of every kind, lengths, and what ends a header or begins another request.

    for value in corpus(): ...        # the bytes of a header's value, as they go over the wire
"""

from __future__ import annotations

import random

STRANGE = [
    "' OR '1'='1", "'; DROP TABLE keys; --", "\" UNION SELECT hash FROM secrets --", "%27%20OR%201=1", "admin'/*",
    "\x00", "key\x00", "\x00" * 600, "x" * 1_000_000, "ключ", "🔑" * 10, "\udcff\udcfe", "​", " ", "\t", "Bearer",
    "Bearer Bearer", "null", "undefined", "{}", "[]", "true", "../../pepper", "${jndi:ldap://x}", "%s%s%n", "\ufeff",
    "é", "e\u0301", "tw-", "tw-" + "A" * 43, "\r", "sk-" + "a" * 48, "*", "_", "%", "\\", "`id`", "{{7*7}}",
]  # fmt: skip
_TABLES = ("keys", "secrets", "budgets", "credits", "hold", "entry", "account", "sqlite_master")
_SQL = (
    "' OR 1=1 --", "') OR ('1'='1", "'; DELETE FROM {table}; --", "'; INSERT INTO {table} VALUES (1, 'x'); --",
    "' UNION SELECT * FROM {table} --",
    "'; UPDATE {table} SET grant = '{{}}'; --", "'||(SELECT hex(hash) FROM {table})||'",
    "x' AND (SELECT count(*) FROM {table}) > 0 --", "'; ATTACH DATABASE 'x' AS x; --",
    "'; PRAGMA writable_schema=1; --",
    "' OR load_extension('x') --", "\\'; DROP TABLE {table}; --", "' OR name LIKE '%", "1; VACUUM INTO 'x'",
)  # fmt: skip
_SPLITS = (
    "x\r\nx-tierwise-session: evil", "x\nauthorization: Bearer y",
    "x\r\n\r\nGET /v1/admin/keys HTTP/1.1\r\nhost: x\r\n\r\n",
    "x\rtransfer-encoding: chunked", "x\r\n folded", "x\x0b\x0c", "x\r\ncontent-length: 0",
    "\r\n", "\n", "x\x85y", "x\u2028y",
)  # fmt: skip
CASES = 500


def corpus(seed: int = 1) -> list[bytes]:
    """CASES values without the scheme, the same for the same seed, no two alike."""
    dice = random.Random(seed)
    texts = list(STRANGE)
    texts += [each.format(table=table) for each in _SQL for table in _TABLES]
    texts += [f"{start}{each}" for each in _SPLITS for start in ("", "tw-", "Bearer ")]
    texts += ["k" * size for size in (1, 511, 512, 513, 4_096, 30_000, 65_000, 65_536, 70_000, 200_000)]
    found = dict.fromkeys(text.encode("utf-8", "surrogateescape") for text in texts)
    found |= {b"tw-%cx" % number: None for number in range(256)}
    while len(found) < CASES:
        kind = dice.randrange(3)
        if kind == 0:
            made = dice.randbytes(dice.randint(2, 80))
        elif kind == 1:
            made = "".join(chr(dice.randrange(0x20, 0xD7FF)) for _ in range(dice.randint(2, 40))).encode()
        else:
            made = dice.choice(_SQL).format(table=dice.choice(_TABLES)).encode() + b"tw-" + dice.randbytes(3)
        found[made] = None
    return list(found)[:CASES]
