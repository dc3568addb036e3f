"""Benchmarks: one script per question, ``python -m benchmarks.<name> [--fast]``.

Each prints a table for people, then one last line of JSON. Everything that is compared runs interleaved in one run;
medians are compared, and no result is taken from another run.
"""
