"""The steps of a run, and their results on disk.

graph         what each step computes, and what it depends on
run           Steps: keys, states and results; runs what is not done
store         Store, Draft, Result: results by key, written atomically
requirements  what is checked in the first second of a run
explain       why a step has to run
lock          one lock for each folder
"""
