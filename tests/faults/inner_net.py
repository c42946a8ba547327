"""Fetch in a network of its own, where every address that it must not talk to listens: for row 19.

``unshare --net --mount python -m tests.faults.inner_net SEED CASES`` gives a network without a way out addresses,
listeners and a DNS server, fetches hostile addresses by the real stage and the system's resolver, and prints what was
connected to and what became of each.
"""

from __future__ import annotations

import ipaddress
import json
import random
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from urllib.parse import quote, unquote

from ciml.events.records import Batch, Origin, PendingRun, RunFacts
from ciml.transforms.fetch.fetch import fetch_in_parts
from ciml.transforms.fetch.policy import FetchPolicy

LOG = b"a log\n" * 100
PUBLIC = ("93.184.216.34", "2606:2800:220:1::10")
FORBIDDEN = (
    "169.254.169.254", "169.254.170.2", "10.0.0.7", "172.16.3.4", "192.168.1.1", "100.64.0.1", "100.100.100.200",
    "168.63.129.16", "192.0.0.192", "198.18.0.1", "127.0.0.1", "127.8.8.8", "64:ff9b::a9fe:a9fe", "64:ff9b::a00:7",
    "2002:a00:7::1", "2001:0:a00:7::1", "fd00:ec2::254", "fd12::7", "fec0::7", "::1",
)  # fmt: skip
DNS = "127.0.0.53"
_REDIRECTED = 100_000  # and above: numbers of addresses that are behind redirects
#: What a hostile address may become.
REFUSALS = {"address_not_allowed", "bad_address"}


class Net:
    """Listeners on every address, and a DNS server.

    Attributes:
      met: how many connections each address had.
      names: the answers to a name, in turn; the last for ever.
    """

    def __init__(self) -> None:
        self.met: Counter[str] = Counter()
        self.names: dict[str, list[list[str]]] = {}
        self._asked: Counter[tuple[str, int]] = Counter()
        for command in (["ip", "link", "set", "lo", "up"], *map(_address, (*PUBLIC, *FORBIDDEN))):
            subprocess.run(command, check=True)
        resolv = Path("/tmp/resolv.conf")  # in a file system of this process's own
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/tmp"], check=True)
        resolv.write_text(f"nameserver {DNS}\noptions timeout:1 attempts:1\n")
        subprocess.run(["mount", "--bind", str(resolv), "/etc/resolv.conf"], check=True)
        for ip in (*PUBLIC, *FORBIDDEN):
            family = socket.AF_INET6 if ":" in ip else socket.AF_INET
            listener = socket.create_server((ip, 80), family=family, backlog=128)
            threading.Thread(target=self._listen, args=(ip, listener), daemon=True).start()
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind((DNS, 53))
        threading.Thread(target=self._resolve, args=(server,), daemon=True).start()

    def _listen(self, ip: str, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            self.met[ip] += 1
            threading.Thread(target=_answer, args=(connection,), daemon=True).start()

    def _resolve(self, server: socket.socket) -> None:
        while True:
            query, peer = server.recvfrom(4096)
            server.sendto(self._reply(query), peer)

    def _reply(self, query: bytes) -> bytes:
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += 1 + query[at]
        kind = struct.unpack_from(">H", query, at + 1)[0]
        name = ".".join(labels).lower()
        turns = self.names.get(name, [])
        turn = min(self._asked[name, kind], len(turns) - 1)
        self._asked[name, kind] += 1
        version = {1: 4, 28: 6}.get(kind)
        found = [ip for text in (turns[turn] if turns else ()) if (ip := ipaddress.ip_address(text)).version == version]
        flags = 0x8180 if turns else 0x8183  # no error, or no such name
        head = query[:2] + struct.pack(">HHHHH", flags, 1, len(found), 0, 0) + query[12 : at + 5]
        return head + b"".join(
            b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 0, len(ip.packed)) + ip.packed for ip in found
        )


def _address(ip: str) -> list[str]:
    size = 128 if ":" in ip else 8 if ip.startswith("127.") else 32
    at_once = ["nodad"] if ":" in ip else []  # without a look for another machine that has it
    return ["ip", "addr", "replace", f"{ip}/{size}", "dev", "lo", *at_once]


def _answer(connection: socket.socket) -> None:
    with connection:
        asked = b""
        while b"\r\n\r\n" not in asked:
            if not (piece := connection.recv(4096)):
                return
            asked += piece
        path = asked.split(b" ", 2)[1].decode()
        if path.startswith("/to/"):
            head = (
                f"HTTP/1.1 302 Found\r\nLocation: {unquote(path[4:])}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            )
            connection.sendall(head.encode())
        else:
            connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(LOG) + LOG)


def forms(ip: str, chance: random.Random) -> str:
    """An address as a URL's host, in one of its forms."""
    if ":" in ip:
        return f"[{chance.choice((ip, ipaddress.ip_address(ip).exploded))}]"
    number = int(ipaddress.ip_address(ip))
    a, b, c, d = ip.split(".")
    return chance.choice((
        ip, f"{number}", hex(number), f"0{number:o}", f"0x{int(a):x}.{b}.{c}.{d}", f"0{int(a):o}.{b}.{c}.{d}",
        f"{a}.{number & 0xFFFFFF}", f"{ip}.", f"[::ffff:{ip}]", f"[::{ip}]", f"[64:ff9b::{ip}]", f"%31{ip[1:]}",
        f"good.example.org@{ip}", f"{ip}%23.example.org", f"{ip}\\.example.org", f"{a}\u3002{b}.{c}.{d}",
    ))  # fmt: skip


def hostile(chance: random.Random, net: Net, number: int) -> tuple[str, bool]:
    """An address to fetch, and whether it may give the log: what it leads to is then public after all."""
    ip = chance.choice(FORBIDDEN)
    name = f"n{number}.example.org"
    direct = ("form", "name", "mixed", "rebound", "private")
    kind = chance.choice(direct if number >= _REDIRECTED else (*direct, "redirect"))
    if kind == "form":
        return f"http://{forms(ip, chance)}/", False
    if kind == "redirect":
        target, may = hostile(chance, net, number + _REDIRECTED)
        for _ in range(chance.randrange(1, 4)):
            target = f"http://good.example.org/to/{quote(target, safe='')}"
        return target, may
    if kind == "private":  # may lead inside, but never to these
        name = f"n{number}.inner.example.org"
        ip = chance.choice(("169.254.169.254", "100.100.100.200", "fd00:ec2::254", "168.63.129.16", "64:ff9b::a00:7"))
    good = chance.choice(PUBLIC)
    net.names[name] = {
        "mixed": [chance.sample([good, ip], 2)], "rebound": [[good], [ip]],
    }.get(kind, [[ip]])  # fmt: skip
    return f"http://{name}/", kind == "rebound"


def main(seed: int, cases: int) -> None:
    chance, net = random.Random(seed), Net()
    net.names["good.example.org"] = [list(PUBLIC)]
    urls = [("http://good.example.org/log", True), *(hostile(chance, net, number) for number in range(cases))]
    policy = FetchPolicy(
        hosts=("http://*.example.org",), private_hosts=("http://*.inner.example.org",), connect_s=3.0, read_s=3.0,
        delays_s=(),
    )  # fmt: skip
    pending_runs = [
        PendingRun(Origin("t", 0, number), "", RunFacts(f"run-{number}", "", log_url=url))
        for number, (url, _) in enumerate(urls)
    ]
    wrong: list[str] = []
    reasons: Counter[str] = Counter()
    for _ in range(2):  # a name that is asked again may have another answer
        for part in fetch_in_parts(Batch(None, pending_runs=pending_runs), policy, 0):
            for each in part.pending_runs:
                reasons["log"] += 1
                if each.log != LOG or not urls[each.origin.offset][1]:
                    wrong.append(f"{each.mention.log_url} gave a log")
            for outcome in part.settled:
                reasons[outcome.reason] += 1
                if outcome.reason not in REFUSALS:
                    wrong.append(f"{urls[outcome.origin.offset][0]}: {outcome.reason}, {outcome.detail}")
    forbidden = {ip: net.met[ip] for ip in FORBIDDEN if net.met[ip]}
    met = sum(net.met[ip] for ip in PUBLIC)
    print(json.dumps({"wrong": wrong, "forbidden": forbidden, "public": met, "reasons": reasons}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
