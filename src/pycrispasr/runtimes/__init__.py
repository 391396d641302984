"""The compiled libraries: ours, and CrispASR's. All of cffi is here."""
