"""Fuzzing of everything that reads a file from elsewhere.

`targets` lists the readers, `mutators` damages their files, and `check` says what each reader must
do with a damaged file. `python tests/fuzz --minutes 60` runs them all.
"""
