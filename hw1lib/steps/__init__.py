"""The steps of a run, and their results on disk.

graph         what each step computes and depends on
run           Steps: keys, status and results; runs unfinished steps
store         Store, Draft, Result: results by key, written atomically
requirements  checks at the start of a run
explain       why a step has to run
lock          a lock on each folder
"""
