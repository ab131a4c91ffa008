# SPDX-License-Identifier: Apache-2.0
"""Fills and reads a memcached and compares every value.

memcached.py ADDRESS PORT ascii|binary CONNECTIONS ROUNDS
"""

import random
import socket
import struct
import sys
import threading

LARGE = 3_000_000


class Ascii:
    def __init__(self, conn):
        self.conn, self.file = conn, conn.makefile("rb")

    def line(self, text):
        self.conn.sendall(text)
        return self.file.readline()

    def set(self, key, value):
        answer = self.line(b"set %s 7 0 %d\r\n%s\r\n" % (key, len(value), value))
        if answer != b"STORED\r\n":
            raise ValueError(f"set: {answer}")

    def get(self, keys):
        self.conn.sendall(b"get %s\r\n" % b" ".join(keys))
        found = {}
        while (line := self.file.readline()) != b"END\r\n":
            _, key, flags, size = line.split()
            found[key] = self.file.read(int(size))
            if flags != b"7" or self.file.read(2) != b"\r\n":
                raise ValueError(f"get: {line}")
        return found

    def add(self, key, n):
        return int(self.line(b"incr %s %d\r\n" % (key, n)))

    def delete(self, key):
        if self.line(b"delete %s\r\n" % key) != b"DELETED\r\n":
            raise ValueError("delete")


class Binary:
    HEADER = struct.Struct("!BBHBBHIIQ")
    GET, SET, DELETE, INCREMENT, NOOP, GETKQ = 0, 1, 4, 5, 10, 13

    def __init__(self, conn):
        self.conn, self.file = conn, conn.makefile("rb")

    def request(self, op, key=b"", extras=b"", value=b""):
        total = len(key) + len(extras) + len(value)
        return self.HEADER.pack(0x80, op, len(key), len(extras), 0, 0, total, 0, 0) + extras + key + value

    def answer(self):
        magic, op, key, extras, _, status, total, _, _ = self.HEADER.unpack(self.file.read(self.HEADER.size))
        body = self.file.read(total)
        if magic != 0x81 or status != 0:
            raise ValueError(f"operation {op}: {status} {body[:100]}")
        return op, body[extras:extras + key], body[extras + key:]

    def ask(self, *request):
        self.conn.sendall(self.request(*request))
        return self.answer()

    def set(self, key, value):
        self.ask(self.SET, key, struct.pack("!II", 7, 0), value)

    def get(self, keys):
        self.conn.sendall(b"".join(self.request(self.GETKQ, k) for k in keys) + self.request(self.NOOP))
        found = {}
        while (answer := self.answer())[0] != self.NOOP:
            found[answer[1]] = answer[2]
        return found

    def add(self, key, n):
        return struct.unpack("!Q", self.ask(self.INCREMENT, key, struct.pack("!QQI", n, 0, 0))[2])[0]

    def delete(self, key):
        self.ask(self.DELETE, key)


def work(cache, name, rounds, rng):
    counter, sum = b"%s:sum" % name, 0
    cache.set(counter, b"0")
    for i in range(rounds):
        top = LARGE if i % 50 == 49 else 20_000
        values = {b"%s:%d" % (name, k): rng.randbytes(rng.randrange(top)) for k in range(3)}
        for key, value in values.items():
            cache.set(key, value)
        if cache.get(list(values)) != values:
            raise ValueError("other values came back")
        sum += i
        if cache.add(counter, i) != sum:
            raise ValueError("wrong sum")
        cache.delete(b"%s:0" % name)
        if cache.get([b"%s:0" % name]) != {}:
            raise ValueError("deleted, and still there")


def main():
    address, protocol = (sys.argv[1], int(sys.argv[2])), {"ascii": Ascii, "binary": Binary}[sys.argv[3]]
    connections, rounds = int(sys.argv[4]), int(sys.argv[5])
    failed = []

    def one(i):
        try:
            with socket.create_connection(address, 60) as conn:
                work(protocol(conn), b"%s-%d" % (sys.argv[3].encode(), i), rounds, random.Random(i))
        except Exception as error:  # a thread's error must reach the end
            failed.append(repr(error))

    threads = [threading.Thread(target=one, args=(i,)) for i in range(connections)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if failed:
        sys.exit("\n".join(failed))


main()
