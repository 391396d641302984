"""Measuring and comparing: stages of a model beside those of another runtime, in values and in seconds."""
