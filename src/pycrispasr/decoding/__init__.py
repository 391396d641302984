"""From recordings to transcripts: the scheduler of segments, and the times of words."""
