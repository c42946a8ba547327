"""The program of the project app: totals of a ledger, which its tests compute over and over."""

import hashlib
import sqlite3
import zlib
from pathlib import Path


def total(amounts):
    """Return the sum of amounts."""
    found = 0
    for amount in amounts:
        found = found + amount
    return found


def packed(amounts):
    """Return the amounts as compressed bytes."""
    return zlib.compress(",".join(str(amount) for amount in amounts).encode(), 9)


def unpacked(data):
    """Return the amounts of compressed bytes."""
    return [int(part) for part in zlib.decompress(data).decode().split(",")]


def saved(amounts, folder):
    """Return the amounts as they are read from a file that was written to a folder."""
    path = Path(folder, "amounts")
    path.write_text("\n".join(map(str, amounts)))
    return [int(line) for line in path.read_text().splitlines()]


def seal(data, rounds):
    """Return the digest of a digest, so many times."""
    for _ in range(rounds):
        data = hashlib.sha256(data).digest()
    return data.hex()


def by_account(entries):
    """Return the total of each account, by SQL."""
    with sqlite3.connect(":memory:") as database:
        database.execute("create table ledger (account text, amount integer)")
        database.executemany("insert into ledger values (?, ?)", entries)
        return dict(database.execute("select account, sum(amount) from ledger group by account"))
