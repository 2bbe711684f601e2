"""An ssh server that behaves like a small device: `python ssh_device.py FOLDER` prints its port and serves until ended.

FOLDER holds host_key, authorized_keys, `home` and `bin` (its PATH), and `blocks` where files must stay below so many
blocks of 512 bytes. A banner is printed before every command, as a talkative .bashrc does, not ending its last line.
"""

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import asyncssh

BANNER = "printf 'Welcome to the device\\nno mail\\n$ '; "
LIMIT = "trap '' XFSZ; ulimit -f {}; "


async def pump(source: Any, target: Any) -> None:
    """Bytes as they come, until there are none or nobody takes them."""
    with contextlib.suppress(ConnectionError, asyncssh.Error):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()


async def serve(process: Any, folder: Path) -> None:
    """One command, with what it reads and writes; it loses its stdin when the connection is lost, as under sshd."""
    limit = LIMIT.format((folder / "blocks").read_text()) if (folder / "blocks").exists() else ""
    child = await asyncio.create_subprocess_exec(
        "/bin/sh",
        "-c",
        BANNER + limit + process.command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"HOME": str(folder / "home"), "PATH": str(folder / "bin")},
        start_new_session=True,
    )

    async def feed() -> None:
        await pump(process.stdin, child.stdin)
        child.stdin.close()

    feeding = asyncio.create_task(feed())
    await asyncio.gather(pump(child.stdout, process.stdout), pump(child.stderr, process.stderr))
    process.exit(await child.wait())
    feeding.cancel()


async def main(folder: Path) -> None:
    """Listen on a free port of the loopback."""
    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[str(folder / "host_key")],
        authorized_client_keys=str(folder / "authorized_keys"),
        process_factory=lambda process: serve(process, folder),
        encoding=None,
    )
    print(server.get_port(), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until the test ends, however it does
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
