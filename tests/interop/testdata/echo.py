# SPDX-License-Identifier: Apache-2.0
"""Echo servers in Python's ways, and a client that compares what comes back.

echo.py asyncio|threads|forks ADDRESS PORT
echo.py client ADDRESS PORT CONNECTIONS ROUNDS
"""

import asyncio
import random
import select
import socket
import socketserver
import sys
import threading

PIECE = 65536


def serve_asyncio(address):
    async def echo(reader, writer):
        while piece := await reader.read(PIECE):
            writer.write(piece)
            await writer.drain()
        writer.close()

    async def main():
        server = await asyncio.start_server(echo, *address)
        await server.serve_forever()

    asyncio.run(main())


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while piece := self.request.recv(PIECE):
            self.request.sendall(piece)


def serve_threads(address):
    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    Server(address, Echo).serve_forever()


def serve_forks(address):
    class Server(socketserver.ForkingTCPServer):
        allow_reuse_address = True

    Server(address, Echo).serve_forever()


def exchange(conn, octets):
    """Sends all while it receives all."""
    left, got = memoryview(octets), bytearray()
    while len(got) < len(octets):
        readable, writable, _ = select.select([conn], [conn] if left else [], [], 60)
        if not readable and not writable:
            raise TimeoutError(f"{len(left)} octets not sent, {len(got)} of {len(octets)} received")
        if writable:
            left = left[conn.send(left):]
        if readable:
            piece = conn.recv(PIECE)
            if not piece:
                raise EOFError(f"after {len(got)} of {len(octets)} octets")
            got += piece
    if got != octets:
        raise ValueError("other octets came back")


def talk(address, rounds, rng, failed):
    try:
        with socket.create_connection(address, 60) as conn:
            conn.setblocking(False)
            for _ in range(rounds):
                size = rng.choice([1, 100, 1460, 10_000, rng.randrange(1, 100_000)])
                exchange(conn, rng.randbytes(size))
    except Exception as error:  # a thread's error must reach the end
        failed.append(repr(error))


def client(address, connections, rounds):
    failed = []
    threads = [threading.Thread(target=talk, args=(address, rounds, random.Random(i), failed))
               for i in range(connections)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if failed:
        sys.exit("\n".join(failed))


def main():
    kind, address, arguments = sys.argv[1], (sys.argv[2], int(sys.argv[3])), map(int, sys.argv[4:])
    {"asyncio": serve_asyncio, "threads": serve_threads, "forks": serve_forks, "client": client}[kind](
        address, *arguments)


main()
