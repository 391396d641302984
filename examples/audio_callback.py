"""Two threads: a callback that must never wait pushes, and the main thread works.

    python examples/audio_callback.py samples/long.wav

The thread below stands for a sound card, which calls back every 20 ms and does not wait. With sounddevice its place is
taken by

    def callback(block, frames, time, status):
        if not session.closed:
            session.push(block, sample_rate=48000)

    with sounddevice.InputStream(samplerate=48000, channels=1, callback=callback, finished_callback=session.end):
        ...

where `finished_callback` ends the audio when the device goes away.
"""

import sys
import threading
import time

import soundfile

import pycrispasr


def sound_card(path: str, session: pycrispasr.Session) -> None:
    rate = soundfile.info(path).samplerate
    for block in soundfile.blocks(path, blocksize=rate // 50, dtype="float32"):
        session.push(block, sample_rate=rate)  # returns at once; False when there was no room
        time.sleep(0.002)  # ten times faster than anybody speaks
    session.end()


def main(path: str) -> None:
    with pycrispasr.Model("tiny") as model, model.session(vad="on", silence=0.5) as session:
        threading.Thread(target=sound_card, args=(path, session), daemon=True).start()
        for event in session.events():
            match event:
                case pycrispasr.SpeechStarted(time=when):
                    print(f"{when:5.1f} s  somebody speaks")
                case pycrispasr.Final(segment=segment):
                    print(f"{segment.end:5.1f} s  {segment.text}")
                case pycrispasr.Overrun(start=start, end=end):
                    print(f"{start:5.1f} s  {end - start:.1f} s of audio were lost: this machine is too slow")


if __name__ == "__main__":
    main(sys.argv[1])
