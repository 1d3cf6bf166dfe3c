"""aioice, speaking the lines of icecat: controlling|controlled ADDRESS."""

import asyncio
import os
import sys

import aioice


def say(line):
    print(line, flush=True)


async def main():
    role, address = sys.argv[1:3]
    # It gathers every address of the machine otherwise.
    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: [address]
    relay = {}
    if server := os.environ.get("INTEROP_TURN"):
        host, port = server.split(":")
        relay = {
            "turn_server": (host, int(port)),
            "turn_username": os.environ["INTEROP_TURN_USER"],
            "turn_password": os.environ["INTEROP_TURN_PASSWORD"],
        }
    connection = aioice.Connection(
        ice_controlling=role == "controlling", use_ipv6=False, **relay
    )
    # Aggressive nomination unless the other side is "lite": it then nominates once, regularly.
    connection.remote_is_lite = role == "controlling"
    await connection.gather_candidates()
    say(f"ufrag {connection.local_username}")
    say(f"pwd {connection.local_password}")
    for candidate in connection.local_candidates:
        say(f"cand {candidate.to_sdp()}")
    say("end")
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while (line := (await reader.readline()).decode().strip()) != "end":
        word, _, rest = line.partition(" ")
        if word == "ufrag":
            connection.remote_username = rest
        elif word == "pwd":
            connection.remote_password = rest
        elif word == "cand":
            await connection.add_remote_candidate(aioice.Candidate.from_sdp(rest))
    await connection.add_remote_candidate(None)
    await connection.connect()
    say("state connected")

    async def receive():
        while True:
            say("data " + (await connection.recv()).decode())

    receiving = asyncio.create_task(receive())
    while line := await reader.readline():
        await connection.sendto(line.strip(), 1)
    receiving.cancel()
    await connection.close()


asyncio.run(main())
