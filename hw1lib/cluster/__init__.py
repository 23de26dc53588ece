"""Steps on Dask workers, on this machine or on a cluster. Optional: only imported for --cluster and --workers.

run_steps: run all unfinished steps of a report on workers.
schedule: simulate how long they would take.
workers: start workers, or connect to those of a running scheduler.
"""
