"""One thread: feed audio as it comes, and look at the text whenever you like.

    python examples/feed_blocks.py samples/long.wav

Any source of blocks will do in place of the file: a socket, a microphone's blocking read, a decoder.
"""

import sys

import soundfile

import pycrispasr


def main(path: str) -> None:
    rate = soundfile.info(path).samplerate
    with pycrispasr.Model("tiny") as model, model.session() as session:
        for block in soundfile.blocks(path, blocksize=rate // 10, dtype="float32"):
            session.feed(block, sample_rate=rate)  # takes as long as the work that it brings
            for event in session.poll():
                if isinstance(event, pycrispasr.Partial):
                    print(f"{event.end:5.1f} s  {event.committed}|{event.tentative}")
        print(session.finish().text)


if __name__ == "__main__":
    main(sys.argv[1])
