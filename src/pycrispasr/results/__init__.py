"""What a transcription gives, the formats it is written in, and lists of recordings and results."""
