"""Model files: found, fetched, read, converted, quantised and measured."""
