"""Steps on Dask workers, on this machine or a cluster. Optional: imported only for --cluster and --workers.

run_steps  runs all unfinished steps of a report on workers
schedule   simulates how long they would take
workers    starts workers, or connects to those of a running scheduler
"""
