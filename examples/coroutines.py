"""Coroutines: the event loop is never blocked, since the work is done in a thread.

python examples/coroutines.py samples/long.wav
"""

import asyncio
import sys

import soundfile

import pycrispasr


async def feed(session: pycrispasr.AsyncSession, path: str) -> None:
    rate = soundfile.info(path).samplerate
    for block in soundfile.blocks(path, blocksize=rate // 10, dtype="float32"):
        await session.feed(block, sample_rate=rate)  # waits while the session's queue is full
        await asyncio.sleep(0.01)
    session.end()


async def main(path: str) -> None:
    with pycrispasr.Model("tiny") as model:
        async with model.session() as session:
            feeder = asyncio.create_task(feed(session, path))
            async for event in session.events():
                if isinstance(event, pycrispasr.Partial):
                    print(f"{event.end:5.1f} s  {event.committed}|{event.tentative}")
                elif isinstance(event, pycrispasr.Final):
                    print(event.segment.text)
            await feeder


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
