"""Sessions: audio that comes in parts, and its text while it comes."""
